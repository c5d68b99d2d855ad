// onnxruntime-web and the network: fetch both, show how far that is, and say in words what is wrong if it fails.
//
// Two builds of the runtime are known to model.json: `webgpu`, which computes on the graphics card, and `wasm`, on the
// processor. Each is a module and a WebAssembly file of one pinned version, whose hashes the browser compares.

/** An error whose message is meant for the reader of the page. */
export class Problem extends Error {}

/**
 * Load the runtime and the network.
 *
 * @param model what model.json says.
 * @param device "webgpu" or "wasm".
 * @param threads of the processor; more than one needs a page that is isolated from other sites.
 * @param report called with (what, bytes so far, bytes in all).
 * @returns the network: (samples, timestep, labels) -> predictions, all arrays of Float32Array.
 */
export async function loadNetwork(model, device, threads, report) {
  const build = model.runtime.builds[device];
  const script = await fetchFile(new URL(build.module.file, runtimeUrl(model)), build.module, "runtime", report);
  const wasm = await fetchFile(new URL(build.wasm.file, runtimeUrl(model)), build.wasm, "runtime", report);
  // The question mark and the hash after it keep the browser from taking an earlier export out of its cache.
  const networkUrl = new URL(`${model.network.file}?${model.network.sha384.slice(0, 12)}`, import.meta.url);
  const weights = await fetchFile(networkUrl, model.network, "network", report);
  report("start", 0, 0);
  // Imported from memory, because the hash of what `import(url)` fetches could not be compared.
  const ort = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.numThreads = threads;
  const session = await ort.InferenceSession.create(new Uint8Array(weights), { executionProviders: [device], logSeverityLevel: 3 });
  const shape = [model.channels, model.sample_size, model.sample_size];
  const size = shape.reduce((a, b) => a * b);

  return async (samples, timestep, labels) => {
    const batch = samples.length;
    const x = new Float32Array(batch * size);
    samples.forEach((values, i) => x.set(values, i * size));
    const { prediction } = await session.run({
      sample: new ort.Tensor("float32", x, [batch, ...shape]),
      timestep: new ort.Tensor("float32", new Float32Array(batch).fill(timestep), [batch]),
      class_labels: new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [batch]),
    });
    const values = await prediction.getData();
    prediction.dispose();
    return samples.map((_, i) => values.slice(i * size, (i + 1) * size));
  };
}

/** The folder of the runtime: beside this file, or on the network that model.json names. */
const runtimeUrl = (model) => new URL(model.runtime.url, import.meta.url);

/** The content of a file, which must be the one of which model.json has the length and the hash. */
async function fetchFile(url, { bytes, sha384 }, what, report) {
  const isBeside = url.origin === new URL(import.meta.url).origin;
  const advice = isBeside
    ? "Is the whole folder on the server?"
    : `Is there a connection to ${url.host}? An export with --runtime puts a copy beside the page.`;
  const problem = (words) => new Problem(`${url.href} ${words} ${advice}`);
  const content = new Uint8Array(bytes);
  let received = 0;
  try {
    const response = await fetch(url);
    if (!response.ok) throw problem(`is missing: the server answered ${response.status}.`);
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      if (received + value.length > bytes) throw problem("is larger than the file that was exported.");
      content.set(value, received);
      received += value.length;
      report(what, received, bytes);
    }
  } catch (error) {
    throw error instanceof Problem ? error : problem("could not be loaded.");
  }
  // Browsers compute hashes only for pages that came by https or from this machine.
  const hash = crypto.subtle && new Uint8Array(await crypto.subtle.digest("SHA-384", content));
  if (received < bytes || (hash && hexadecimal(hash) !== sha384)) {
    const start = String.fromCharCode(...content.subarray(0, 1)) === "<" ? " It looks like a web page." : "";
    throw problem(`is not the file that was exported.${start}`);
  }
  return content.buffer;
}

const hexadecimal = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/**
 * Whether a network computes what Python's did. Graphics cards and their drivers are of many kinds, and a wrong one gives
 * wrong pictures without any error.
 */
export async function computesRight(network, { check }, noise, tolerance = 0.02) {
  const [prediction] = await network([noise], check.timestep, [check.label]);
  return check.prediction.every((value, i) => Math.abs(prediction[i * check.stride] - value) < tolerance);
}
