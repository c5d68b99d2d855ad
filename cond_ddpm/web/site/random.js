// torch's random numbers on a CPU: `torch.Generator().manual_seed(seed)` and `torch.randn(size, generator=...)`.
//
// The 32-bit words are those of the Mersenne Twister MT19937 (Matsumoto & Nishimura 1998), and are exactly torch's. Normal
// numbers are made of them by the method of Box and Muller. Their last bit may differ from torch's, because the logarithm and
// the sine of a browser are rounded in another way.

const N = 624; // words of the state
const M = 397;

export class Generator {
  /** @param {bigint | number} seed from 0 to 2^64 - 1; as in torch, only its lowest 32 bits count. */
  constructor(seed) {
    // s_0 = seed, s_i = 1812433253 (s_{i-1} xor (s_{i-1} >> 30)) + i, modulo 2^32
    this.state = new Uint32Array(N);
    this.state[0] = Number(BigInt.asUintN(32, BigInt(seed)));
    for (let i = 1; i < N; i++) {
      const last = this.state[i - 1];
      this.state[i] = Math.imul(1812433253, last ^ (last >>> 30)) + i;
    }
    this.next = N; // the first word that is asked for renews the state
    this.spare = null; // the second normal number of a pair, which torch keeps for the next call
  }

  /** The next word, from 0 to 2^32 - 1. */
  word() {
    if (this.next === N) this.#renew();
    let y = this.state[this.next++];
    y ^= y >>> 11; // the tempering
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  #renew() {
    const s = this.state;
    for (let i = 0; i < N; i++) {
      // the highest bit of s_i and the other 31 of s_{i+1}, times the matrix of the recurrence
      const y = (s[i] & 0x80000000) | (s[(i + 1) % N] & 0x7fffffff);
      s[i] = s[(i + M) % N] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }

  /** `size` independent standard normal numbers, in the order of `torch.randn`. */
  randn(size) {
    const values = new Float32Array(size);
    if (size < 16) {
      for (let i = 0; i < size; i++) values[i] = this.#normal();
      return values;
    }
    // 24 bits each: the uniform numbers in [0, 1) that a float32 can hold
    for (let i = 0; i < size; i++) values[i] = this.#uniform24();
    for (let i = 0; i + 16 <= size; i += 16) boxMuller(values, i);
    if (size % 16 !== 0) {
      // What is left over does not fill a block of 16. So the last 16 numbers are drawn anew, from new words.
      const start = size - 16;
      for (let i = start; i < size; i++) values[i] = this.#uniform24();
      boxMuller(values, start);
    }
    return values;
  }

  #uniform24() {
    return (this.word() & 0xffffff) / 2 ** 24;
  }

  /** A uniform number in [0, 1) with 53 bits, of two words. */
  #uniform53() {
    const high = this.word() & 0x1fffff; // the upper 11 of the 64 bits are not used
    return (high * 2 ** 32 + this.word()) / 2 ** 53;
  }

  /** One normal number in double precision, which is how torch makes fewer than 16. */
  #normal() {
    if (this.spare !== null) {
      const value = this.spare;
      this.spare = null;
      return value;
    }
    const angle = 2 * Math.PI * this.#uniform53();
    const radius = Math.sqrt(-2 * Math.log1p(-this.#uniform53()));
    this.spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }
}

/**
 * Turn the 16 uniform numbers from `start` into normal ones, in place:
 *
 *     z_j     = sqrt(-2 log(1 - u_j)) cos(2 pi u_{j+8})
 *     z_{j+8} = sqrt(-2 log(1 - u_j)) sin(2 pi u_{j+8})        for j = 0 ... 7
 *
 * Each step is rounded to float32, as torch's is.
 */
function boxMuller(values, start) {
  const round = Math.fround;
  const TWO_PI = round(2 * Math.PI);
  for (let j = start; j < start + 8; j++) {
    const radius = round(Math.sqrt(round(-2 * round(Math.log(round(1 - values[j]))))));
    const angle = round(TWO_PI * values[j + 8]);
    values[j] = radius * round(Math.cos(angle));
    values[j + 8] = radius * round(Math.sin(angle));
  }
}
