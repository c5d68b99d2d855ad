"""The page without a server: what Python writes into it, and its mathematics, which node runs without a browser."""

import hashlib
import json
import shutil
import subprocess

import diffusers
import numpy as np
import pytest
import torch
from conftest import NAMES, ROOT, make_pipeline, make_unet
from diffusers import DDPMScheduler

from cond_ddpm import CondDDPMPipeline
from cond_ddpm.cli import main
from cond_ddpm.pipelines.pipeline_cond_ddpm import _noise_levels, _set_timesteps
from cond_ddpm.web import export_page
from cond_ddpm.web.runtime import BUILDS, copy_runtime
from cond_ddpm.web.schedule import sampler, samplers_of

SITE = ROOT / "cond_ddpm" / "web" / "site"
SEEDS = [0, 1, 42, 2**32 + 1, 2**64 - 1]
SIZES = [1, 5, 15, 16, 17, 31, 40, 192, 3072]


def run_in_node(script, given):
    """What a module prints as JSON; `given` is in its variable of that name, `SITE` is the folder of the page."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    text = f"const SITE = {json.dumps(SITE.as_uri())};\nconst given = {json.dumps(given)};\n{script}"
    done = subprocess.run([node, "--input-type=module", "-"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_randoms(found):
    """Compare words exactly, and normal numbers to a few of their last bits, with torch."""
    for seed, of_seed in zip(SEEDS, found, strict=True):
        for skipped in (0, 1):  # torch gives 63 bits of each pair of words; so from both starts, every bit is compared
            generator = torch.Generator().manual_seed(seed)
            if skipped:
                torch.empty(1, dtype=torch.int32).random_(generator=generator)
            pairs = torch.empty(700, dtype=torch.int64).random_(generator=generator).tolist()
            words = of_seed["words"][skipped:]
            assert [(words[2 * i] % 2**31) * 2**32 + words[2 * i + 1] for i in range(700)] == pairs, seed
        for size, values in zip(SIZES, of_seed["normals"], strict=True):
            expected = torch.randn(size, generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(torch.tensor(values), expected, atol=5e-7, rtol=0)
        generator = torch.Generator().manual_seed(seed)
        expected = torch.cat([torch.randn(size, generator=generator) for size in (3, 17, 2, 192, 192)])
        torch.testing.assert_close(torch.tensor(of_seed["one after the other"]), expected, atol=5e-7, rtol=0)


RANDOMS = """
const randoms = given.seeds.map((text) => {
  const seed = BigInt(text);
  const words = new Generator(seed), one = new Generator(seed);
  return {
    words: Array.from({ length: 1401 }, () => words.word()),
    normals: given.sizes.map((size) => Array.from(new Generator(seed).randn(size))),
    "one after the other": [3, 17, 2, 192, 192].flatMap((size) => Array.from(one.randn(size))),
  };
});
"""


def test_the_random_numbers_are_torchs():
    script = f"const {{ Generator }} = await import(`${{SITE}}/random.js`);{RANDOMS}\nconsole.log(JSON.stringify(randoms));"
    check_randoms(run_in_node(script, {"seeds": list(map(str, SEEDS)), "sizes": SIZES}))


class _Formula(torch.nn.Module):
    """A network that is a formula, so that JavaScript has the same: p = x / 2 + (label - 1) / 4 + t / 2000."""

    config = diffusers.configuration_utils.FrozenDict(sample_size=4, in_channels=3, out_channels=3, num_classes=3)
    dtype, device = torch.float32, torch.device("cpu")

    def forward(self, sample, timestep, class_labels):
        prediction = sample / 2 + (class_labels[:, None, None, None] - 1) / 4 + timestep / 2000
        return diffusers.models.unets.unet_2d.UNet2DOutput(sample=prediction)


SAMPLE = """
const { sample } = await import(`${SITE}/sampler.js`);
const predict = async (samples, timestep, labels) =>
  samples.map((x, i) => x.map((value) => value / 2 + (labels[i] - 1) / 4 + timestep / 2000));
const results = [];
for (const { model, settings } of given) {
  const steps = [];
  for await (const step of sample(predict, model, model.samplers[settings.sampler], settings)) steps.push(step);
  const rows = (name) => steps.map((step) => Array.from(step[name]));
  results.push({ sample: rows("sample").at(-1), noisy: rows("noisy"), original: rows("original") });
}
console.log(JSON.stringify(results));
"""
CALLS = [
    {"steps": 20, "guidance": 3.0, "label": 2, "seed": 5},
    {"steps": 7, "guidance": 1.0, "label": 0, "seed": 2**40 + 3},
    {"steps": 3, "guidance": 0.0, "label": 1, "seed": 7},
    {"steps": 1, "guidance": 1.5, "label": 1, "seed": 8},
    {"steps": 12, "guidance": 1.0, "label": 3, "seed": 9},  # no class
]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_samplers_are_those_of_the_pipeline(prediction_type):
    """Each sampler of the page, with every kind of guidance, on a network that both sides have: to the rounding of float32."""
    pipelines = {
        "clipped": {"timestep_spacing": "trailing"},
        "not clipped, large variance": {"clip_sample": False, "variance_type": "fixed_large", "timestep_spacing": "trailing"},
        "own": {"clip_sample_range": 0.7},
    }
    given, expected = [], []
    for name, settings in pipelines.items():
        scheduler = DDPMScheduler(prediction_type=prediction_type, **settings)
        if name == "own":
            scheduler = diffusers.DDIMScheduler.from_config(scheduler.config, set_alpha_to_one=False)
        pipeline = CondDDPMPipeline(_Formula(), scheduler)
        pipeline.set_progress_bar_config(disable=True)
        clip = scheduler.config.clip_sample_range if scheduler.config.clip_sample else None
        size = {"num_classes": 3, "channels": 3, "sample_size": 4}
        model = {"prediction_type": prediction_type, "clip": clip, **size, **samplers_of(pipeline)}
        assert set(model["samplers"]) == {"dpm++2", "ddim", "ddpm"} | ({"own"} if name == "own" else set())
        for sampler_name in model["samplers"]:
            for call in CALLS:
                if str(call["steps"]) not in model["samplers"][sampler_name]["tables"]:
                    continue
                given.append({"model": model, "settings": {**call, "seed": str(call["seed"]), "sampler": sampler_name}})
                output = pipeline(
                    None if call["label"] == 3 else [call["label"]],
                    seeds=[call["seed"]],
                    num_inference_steps=call["steps"],
                    guidance_scale=call["guidance"],
                    sampler=None if sampler_name == "own" else sampler_name,
                    return_intermediates=call["steps"] if call["steps"] > 1 else None,
                    output_type="pt",
                )
                expected.append((output.images.flatten(), output.intermediate_samples, output.intermediate_predictions))
    assert len(given) >= 40
    for call, found, (image, noisy, original) in zip(given, run_in_node(SAMPLE, given), expected, strict=True):
        shown = (torch.tensor(found["sample"]) / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(shown, image, atol=1e-4, rtol=0, msg=lambda text, call=call: f"{call['settings']}: {text}")
        if noisy is not None:
            torch.testing.assert_close(torch.tensor(found["noisy"]), noisy.flatten(1), atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(torch.tensor(found["original"]), original.flatten(1), atol=1e-3, rtol=1e-4)


def test_the_tables_are_the_schedulers_own():
    pipeline = make_pipeline(make_unet())
    known = samplers_of(pipeline)
    assert known["own_sampler"] == "ddpm" and known["sampler"] == "dpm++2"  # because ddpm takes 1000 steps
    assert next(iter(known["samplers"])) == "ddpm" and known["samplers"]["ddpm"]["default_steps"] == 1000
    for name, entry in known["samplers"].items():
        for count in ("1", "20", "50"):
            scheduler = pipeline.make_scheduler(name)
            _set_timesteps(scheduler, int(count), None, "cpu")
            table = entry["tables"][count]
            assert table["timesteps"] == scheduler.timesteps.tolist()
            np.testing.assert_allclose(table["sigmas"], [*_noise_levels(scheduler), 0], rtol=1e-7)
        assert ("1000" in entry["tables"]) == (name == "ddpm")
    many = CondDDPMPipeline(pipeline.unet, pipeline.make_scheduler("dpm++2"), num_inference_steps=100)
    known = samplers_of(many)  # its own sampler, though it takes more steps than the page has for others
    assert known["sampler"] == "dpm++2" and "100" in known["samplers"]["dpm++2"]["tables"]
    few = make_pipeline(make_unet())
    few.scheduler = DDPMScheduler(num_train_timesteps=10, timestep_spacing="trailing")
    assert max(map(int, samplers_of(few)["samplers"]["dpm++2"]["tables"])) == 10


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.UniPCMultistepScheduler(),
        diffusers.DPMSolverMultistepScheduler(solver_order=3),
        diffusers.DPMSolverMultistepScheduler(solver_type="heun"),
        diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
        DDPMScheduler(thresholding=True),
        DDPMScheduler(variance_type="fixed_small_log"),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_a_scheduler_that_the_page_does_not_have_is_replaced(scheduler):
    pipeline = make_pipeline(make_unet())
    pipeline.scheduler = scheduler
    assert sampler(scheduler, "", 20) is None
    if scheduler.config.get("thresholding"):
        with pytest.raises(ValueError, match="scheduler: expected one with settings that the page has"):
            samplers_of(pipeline)
    else:
        known = samplers_of(pipeline)
        assert known["own_sampler"] is None and known["sampler"] in known["samplers"]


# The folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason='pip install ".[onnx]"')
    folder = tmp_path_factory.mktemp("web")
    CondDDPMPipeline(make_unet("hybrid"), DDPMScheduler(), dict(enumerate(NAMES)), 0.1, 2.0).save_pretrained(folder / "model")
    assert main(["export", "--model", str(folder / "model"), "--format", "web", "--output", str(folder / "site")]) == 0
    return folder / "site"


@pytest.mark.end_to_end
def test_what_is_written(site):
    import onnx

    names = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert names == {path.name for path in SITE.iterdir() if path.is_file()} | {"unet.onnx", "model.json"}
    about = json.loads((site / "model.json").read_text())
    network = (site / "unet.onnx").read_bytes()
    assert about["network"]["bytes"] == len(network) and about["network"]["sha384"] == hashlib.sha384(network).hexdigest()
    assert about["classes"] == NAMES and about["guidance_scale"] == 2 and about["source"] == about["name"] == "model"
    assert about["runtime"]["url"].startswith("https://")
    weights = onnx.load(site / "unet.onnx").graph.initializer
    sizes = {kind: [np.prod(weight.dims) for weight in weights if weight.data_type == kind] for kind in (1, 10)}
    assert min(sizes[onnx.TensorProto.FLOAT16]) >= 1024 > max(sizes[onnx.TensorProto.FLOAT])
    for path in site.rglob("*"):
        if path.is_file():
            assert str(site.parent).encode() not in path.read_bytes(), path.name  # nothing of this machine


@pytest.mark.end_to_end
def test_what_is_refused(site, tmp_path, capsys):
    with pytest.raises(ValueError, match="output: expected a new or empty folder"):
        export_page(make_pipeline(make_unet("simple")), site, "model", "model")
    model = str(site.parent / "model")
    arguments = ["export", "--model", model, "--output", str(tmp_path / "out")]
    assert main([*arguments, "--format", "web", "--runtime", str(tmp_path)]) == 1
    assert "expected `download`, or a folder of npm's package onnxruntime-web" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--format", "onnx", "--runtime", "download"])
    assert "runtime: expected --format web beside it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []  # nothing is left


def test_the_runtime_is_of_one_version(tmp_path, monkeypatch):
    package = tmp_path / "onnxruntime-web"
    (package / "dist").mkdir(parents=True)
    contents = {}
    for build in BUILDS.values():
        for part in build.values():
            contents[part["file"]] = part["file"].encode()
            (package / "dist" / part["file"]).write_bytes(contents[part["file"]])
    with pytest.raises(ValueError, match=r"expected ort\.wasm\.bundle\.min\.mjs of .*, got a file of 23 bytes"):
        copy_runtime(str(package), tmp_path / "refused")
    ours = {
        device: {kind: {**part, "sha384": hashlib.sha384(contents[part["file"]]).hexdigest()} for kind, part in build.items()}
        for device, build in BUILDS.items()
    }
    monkeypatch.setattr("cond_ddpm.web.runtime.BUILDS", ours)
    monkeypatch.setattr("cond_ddpm.web.runtime.CDN", (package / "dist").as_uri() + "/")
    for source in (str(package), str(package / "dist"), "download"):
        copy_runtime(source, tmp_path / "copies" / str(len(source)))
        written = {path.name: path.read_bytes() for path in (tmp_path / "copies" / str(len(source))).iterdir()}
        assert written == contents
    (package / "dist" / "ort.wasm.bundle.min.mjs").unlink()
    with pytest.raises(ConnectionError, match="cannot be downloaded"):
        copy_runtime("download", tmp_path / "missing")


def test_the_page_asks_no_other_host_than_the_runtimes():
    """Of its own files, none names another host; the runtime's is in model.json."""
    for path in SITE.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "").replace("http://127.0.0.1", "")
        assert "://" not in text, path.name
