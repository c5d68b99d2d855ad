"""A demo page in the browser: choose a class and see images of it. This file is published with a demo Space's app.py.

May import: the standard library, torch, diffusers and gradio; nothing of this package, so that it works alone.
It is at the end of the data flow: `hub/` uploads it with a pipeline folder.
"""

import gradio
from diffusers import DiffusionPipeline


def make_demo(pipeline: DiffusionPipeline) -> gradio.Blocks:
    """A page to choose class, number of images, seed, guidance and steps. The same choice always gives the same images.

    Args:
        pipeline: a `CondDDPMPipeline`, loaded by this package or by diffusers. Its code may be of an earlier version.
    """
    config, schedule = pipeline.unet.config, pipeline.scheduler.config
    names = pipeline.id2label or {label: str(label) for label in range(config.num_classes)}
    choices = [("any class", -1)] + [(name, label) for label, name in names.items()]
    most_steps = min(100, schedule.num_train_timesteps)

    def sample(label: int, count: float, seed: float, guidance: float, steps: float):
        first = int(seed)
        seeds = range(first, first + int(count))
        labels = None if label < 0 else [int(label)]
        settings = {"guidance_scale": guidance if labels else 1.0, "num_inference_steps": int(steps)}
        images = pipeline(labels, seeds=seeds, num_images_per_label=len(seeds), **settings).images
        scale = max(1, 128 // config.sample_size)  # enlarged here, because the browser would blur the pixels
        return [image.resize((config.sample_size * scale,) * 2, resample=0) for image in images]

    with gradio.Blocks(title="cond_ddpm") as demo:
        gradio.Markdown(f"# Images of {config.num_classes} classes\nA class-conditional DDPM draws the class that you choose.")
        with gradio.Row():
            with gradio.Column(scale=1):
                label = gradio.Dropdown(choices, value=choices[1][1], label="class")
                count = gradio.Slider(1, 16, value=8, step=1, label="images")
                seed = gradio.Number(0, precision=0, minimum=0, label="seed")
                guidance = gradio.Slider(0, 8, value=pipeline.guidance_scale, step=0.1, label="guidance_scale")
                steps = gradio.Slider(2, most_steps, value=min(20, most_steps), step=1, label="steps")
                button = gradio.Button("Sample", variant="primary")
            gallery = gradio.Gallery(label="samples", columns=4, scale=2, height="auto")
        inputs = [label, count, seed, guidance, steps]
        button.click(sample, inputs, gallery)
        demo.load(sample, inputs, gallery)
    return demo
