// A thread of its own for the network, so that the page stays alive while it computes.
//
// Messages to it:   {type: "load", model, device, threads}   {type: "sample", id, settings}   {type: "stop"}
// Messages from it: {type: "progress", ...}   {type: "ready", device, threads}   {type: "step", id, ...}
//                   {type: "done", id, stopped, pixels}   {type: "error", message}

import { Generator } from "./random.js";
import { Problem, computesRight, loadNetwork } from "./runtime.js";
import { sample, toPixels } from "./sampler.js";

let model = null;
let network = null;
let stopped = false;

onmessage = async ({ data }) => {
  try {
    if (data.type === "load") await load(data);
    else if (data.type === "sample") await draw(data);
    else if (data.type === "stop") stopped = true;
  } catch (error) {
    const message = error instanceof Problem ? error.message : `This browser could not run the network. It says: ${error.message}`;
    postMessage({ type: "error", id: data.id, message });
  }
};

async function load({ model: given, device, threads }) {
  model = given;
  const report = (what, received, total) => postMessage({ type: "progress", what, received, total });
  if (device !== "wasm") {
    try {
      if (await hasGraphicsCard(device === "webgpu")) {
        network = await loadNetwork(model, "webgpu", 1, report);
        const size = model.channels * model.sample_size ** 2;
        if (await computesRight(network, model, new Generator(model.check.seed).randn(size))) {
          return postMessage({ type: "ready", device: "webgpu", threads: 1 });
        }
      }
    } catch (error) {
      // Without the network's file the processor fails next, and says so; WebGPU's other files it does not need.
      console.warn("WebGPU failed, so the processor computes:", error);
    }
  }
  network = await loadNetwork(model, "wasm", threads, report);
  postMessage({ type: "ready", device: "wasm", threads });
}

/** Whether there is a graphics card that WebGPU can use. Software that imitates one is slower, but may be asked for. */
async function hasGraphicsCard(isAskedFor) {
  const adapter = await navigator.gpu?.requestAdapter();
  return Boolean(adapter) && (isAskedFor || !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter));
}

async function draw({ id, settings }) {
  stopped = false;
  let result = null;
  for await (const step of sample(network, model, model.samplers[settings.sampler], settings)) {
    result = step.sample;
    const pixels = [step.noisy, step.original].map((values) => toPixels(values, model));
    postMessage({ type: "step", id, index: step.index, timestep: step.timestep, sigma: step.sigma, pixels });
    await new Promise((resolve) => setTimeout(resolve)); // lets a message to stop arrive
    if (stopped) break;
  }
  postMessage({ type: "done", id, stopped, pixels: toPixels(result, model) });
}
