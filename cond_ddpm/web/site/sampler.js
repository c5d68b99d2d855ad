// From noise to a picture: guidance, the picture that a prediction stands for, and the step of each sampler.
//
// The noise schedule is not computed here. model.json has, for each number of steps, the timesteps t and the noise levels
// sigma that Python's schedulers gave. With alpha^2 + s^2 = 1, where s is the standard deviation of the noise in x_t,
//
//     x_t = alpha x_0 + s noise,    sigma = s / alpha,    alpha = 1 / sqrt(1 + sigma^2)
//
// `predict(samples, timestep, labels)` is the network: arrays of x_t and of labels -> an array of predictions.

import { Generator } from "./random.js";

/**
 * Draw one picture step by step. A picture is a function of these arguments, and the same as that of Python's pipeline.
 *
 * @param predict the network.
 * @param model what model.json says: prediction_type, clip, num_classes, channels, sample_size.
 * @param sampler one of model.samplers.
 * @param settings {label, seed, steps, guidance}; the label num_classes means "no class in particular".
 * @yields {index, timestep, sigma, noisy, original, sample} after each step: x_t, the predicted x_0 and the next sample.
 */
export async function* sample(predict, model, sampler, settings) {
  const table = sampler.tables[settings.steps];
  const { timesteps, sigmas } = table;
  const generator = new Generator(BigInt(settings.seed));
  const size = model.channels * model.sample_size ** 2;
  const step = STEPS[sampler.algorithm](sampler, table, () => generator.randn(size));
  let x = generator.randn(size); // x_T: pure noise
  for (let i = 0; i < timesteps.length; i++) {
    const prediction = await guided(predict, x, timesteps[i], settings, model.num_classes);
    const original = predictedOriginal(x, prediction, sigmas[i], model);
    const next = step(i, x, original);
    yield { index: i, timestep: timesteps[i], sigma: sigmas[i], noisy: x, original, sample: next };
    x = next;
  }
}

/**
 * Classifier-free guidance (Ho & Salimans 2022): uncond + scale (cond - uncond). The unconditional prediction is that for
 * the null label. At 1 and at 0 one of the two is enough; otherwise both are computed in one batch.
 */
async function guided(predict, x, timestep, { label, guidance }, nullLabel) {
  if (label === nullLabel || guidance === 1) return (await predict([x], timestep, [label]))[0];
  if (guidance === 0) return (await predict([x], timestep, [nullLabel]))[0];
  const [uncond, cond] = await predict([x, x], timestep, [nullLabel, label]);
  return uncond.map((u, i) => u + guidance * (cond[i] - u));
}

/**
 * The x_0 that the prediction stands for, clipped to the range of pictures:
 *
 *     epsilon:       x_0 = (x_t - s prediction) / alpha
 *     v_prediction:  x_0 = alpha x_t - s prediction           (Salimans & Ho 2022)
 *     sample:        x_0 = prediction
 */
export function predictedOriginal(x, prediction, sigma, { prediction_type, clip }) {
  const [alpha, s] = alphaAndStd(sigma);
  const original = {
    epsilon: (p, i) => (x[i] - s * p) / alpha,
    v_prediction: (p, i) => alpha * x[i] - s * p,
    sample: (p) => p,
  }[prediction_type];
  const limit = clip ?? Infinity;
  return prediction.map((p, i) => Math.min(limit, Math.max(-limit, original(p, i))));
}

function alphaAndStd(sigma) {
  const alpha = 1 / Math.sqrt(1 + sigma ** 2);
  return [alpha, sigma * alpha];
}

// Each makes a function (index, x_t, x_0) -> the sample at the next, lower noise level.
const STEPS = { "dpm++": multistep, ddpm: ancestral };

/**
 * DPM-Solver++ (Lu 2022, algorithm 2, as diffusers has it with solver_type "midpoint"). With lambda = log(alpha / s) and
 * h = lambda_next - lambda, order 1 is
 *
 *     x_next = (s_next / s) x - alpha_next (exp(-h) - 1) x_0
 *
 * which is DDIM without noise. Order 2 replaces x_0 by a point on the line through it and the one of the step before:
 *
 *     x_0 + (x_0 - x_0_before) / (2 r),    r = h_before / h
 *
 * The first step has nothing before it. The last one goes to sigma = 0, where h is infinite, and gives x_0 itself.
 */
function multistep({ order }, { sigmas }) {
  const lambda = sigmas.map((sigma) => -Math.log(sigma));
  let before = null;
  return (i, x, original) => {
    const [, s] = alphaAndStd(sigmas[i]);
    const [alphaNext, sNext] = alphaAndStd(sigmas[i + 1]);
    const h = lambda[i + 1] - lambda[i];
    const towards = -alphaNext * Math.expm1(-h); // the weight of x_0
    const isSecondOrder = order === 2 && before !== null && sigmas[i + 1] > 0;
    const slope = isSecondOrder ? h / (2 * (lambda[i] - lambda[i - 1])) : 0; // 1 / (2 r)
    const earlier = isSecondOrder ? before : original;
    before = original;
    return x.map((value, j) => (sNext / s) * value + towards * (original[j] + slope * (original[j] - earlier[j])));
  };
}

/**
 * DDPM (Ho 2020, eq. 6 and 7): the mean of q(x_next | x_t, x_0), and noise. With a = alpha^2, and beta = 1 - a / a_next,
 *
 *     mean     = alpha_next beta / (1 - a) x_0 + (alpha / alpha_next) (1 - a_next) / (1 - a) x_t
 *     variance = beta (1 - a_next) / (1 - a), or beta for the variance type "fixed_large"
 *
 * No noise is added at timestep 0.
 */
function ancestral({ variance_type }, { timesteps, sigmas }, noise) {
  return (i, x, original) => {
    const [alpha, s] = alphaAndStd(sigmas[i]);
    const [alphaNext, sNext] = alphaAndStd(sigmas[i + 1]);
    const beta = (sigmas[i] ** 2 - sigmas[i + 1] ** 2) * alpha ** 2; // 1 - a / a_next, without the loss of digits
    const ofOriginal = (alphaNext * beta) / s ** 2;
    const ofSample = ((alpha / alphaNext) * sNext ** 2) / s ** 2;
    const std = Math.sqrt(variance_type === "fixed_large" ? beta : (beta * sNext ** 2) / s ** 2);
    const z = timesteps[i] > 0 ? noise() : x.map(() => 0);
    return x.map((value, j) => ofOriginal * original[j] + ofSample * value + std * z[j]);
  };
}

/** Pixels (height, width, channels) from 0 to 255 of values (channels, height, width) from -1 to 1, as RGBA. */
export function toPixels(values, { channels, sample_size }) {
  const area = sample_size ** 2;
  const pixels = new Uint8ClampedArray(4 * area).fill(255); // rounds to the nearest whole number, ties to even, and clamps
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) pixels[4 * i + c] = (values[Math.min(c, channels - 1) * area + i] + 1) * 127.5;
  }
  return pixels;
}
