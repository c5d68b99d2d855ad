"""The networks: shapes, labels, what starts at zero, attention by hand, sizes, and what is refused."""

import pytest
import torch
from conftest import TINY, TINY_HYBRID, make_unet
from torch import nn

from cond_ddpm import AttentionUNet2DModel, HybridUNet2DModel, SimpleUNet2DModel
from cond_ddpm.models import MODELS, forward_flop
from cond_ddpm.models.cond_unet import _attend, _SelfAttention


def _inputs(batch=4, size=8, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, size, size, generator=generator), torch.arange(batch) % 4


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("model", ["simple", "attention", "hybrid"])
def test_output_has_the_shape_of_the_input(model, channels, patch_size):
    unet = make_unet(model, in_channels=channels, out_channels=channels, patch_size=patch_size)
    sample, labels = _inputs(channels=channels)
    output = unet(sample, 5, labels)
    assert output.sample.shape == sample.shape
    assert torch.equal(output.sample, unet(sample, 5, labels, return_dict=False)[0])


def test_a_timestep_may_be_a_number_a_scalar_or_one_an_image(tiny_unet):
    sample, labels = _inputs()
    expected = tiny_unet(sample, 5, labels).sample
    for timestep in (torch.tensor(5), torch.tensor([5]), torch.full((4,), 5)):
        assert torch.equal(tiny_unet(sample, timestep, labels).sample, expected)
    mixed = tiny_unet(sample, torch.tensor([5, 9, 5, 5]), labels).sample
    torch.testing.assert_close(mixed[[0, 2, 3]], expected[[0, 2, 3]])
    assert not torch.allclose(mixed[1], expected[1])


def test_each_label_tells_something_else_and_only_its_own_image(tiny_unet):
    sample, _ = _inputs(1)
    outputs = torch.cat([tiny_unet(sample, 5, torch.tensor([label])).sample for label in range(4)])  # 3 is the null label
    distances = torch.cdist(outputs.flatten(1), outputs.flatten(1)) + torch.eye(4)
    assert distances.min() > 1e-3
    together = tiny_unet(sample.expand(4, -1, -1, -1), 5, torch.arange(4)).sample
    torch.testing.assert_close(together, outputs)


@pytest.mark.parametrize(
    "model, tiny", [("simple", TINY), ("attention", TINY), ("hybrid", TINY_HYBRID | {"num_class_tokens": 2})]
)
def test_the_network_starts_as_zero_and_all_of_it_learns(model, tiny):
    """The output is initialised to zero, so the first prediction is 0. Once it is not, every parameter has a gradient."""
    unet = MODELS[model](sample_size=8, num_classes=3, **tiny)
    sample, labels = _inputs()
    assert not unet(sample, 5, labels).sample.any()
    unet = make_unet(model)
    unet(sample, 5, labels).sample.square().sum().backward()
    silent = [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_embedding_has_a_row_for_the_null_label():
    assert make_unet(num_classes=7).class_embedding.num_embeddings == 8


def test_the_attention_unet_is_the_simple_one_with_attention():
    simple, attention = make_unet("simple"), make_unet("attention")
    assert not any(isinstance(module, _SelfAttention) for module in simple.modules())
    shapes = {name: p.shape for name, p in attention.named_parameters() if ".attention." not in name}
    assert shapes == {name: p.shape for name, p in simple.named_parameters()}


@pytest.mark.parametrize("given, expected", [(None, {4}), ((8, 4), {8, 4}), ((8,), {8}), ((), set())])
def test_attention_is_at_the_resolutions_asked_for(given, expected):
    unet, seen = make_unet("attention", attention_resolutions=given), set()
    for module in unet.modules():
        if isinstance(module, _SelfAttention):
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.shape[-1]))
    unet(_inputs()[0], 5, _inputs()[1])
    assert seen == expected


def test_attention_agrees_with_torch_multihead_attention():
    torch.manual_seed(0)
    ours, theirs = _SelfAttention(128, 64), nn.MultiheadAttention(128, 2, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.to_qkv.weight.data, ours.to_qkv.bias.data
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = ours.to_out.weight.data, ours.to_out.bias.data
    sample = torch.randn(2, 128, 4, 4)
    tokens = ours.norm(sample).flatten(2).transpose(1, 2)
    expected = sample + theirs(tokens, tokens, tokens)[0].transpose(1, 2).reshape(sample.shape)
    torch.testing.assert_close(ours(sample), expected)
    assert ours.num_heads == 2


@pytest.mark.parametrize("tokens", [4, 64])
def test_attention_in_bfloat16_is_the_products_that_torch_says(tokens):
    """The two implementations in `_attend`, and their gradients, agree to the 8 bits of bfloat16."""
    torch.manual_seed(0)
    single = [torch.randn(2, 3, tokens, 16, requires_grad=True) for _ in range(3)]
    half = [x.detach().bfloat16().requires_grad_() for x in single]
    expected, got = nn.functional.scaled_dot_product_attention(*single), _attend(*half)
    torch.testing.assert_close(got.float(), expected, atol=0.03, rtol=0.03)
    (expected**2).sum().backward()
    (got.float() ** 2).sum().backward()
    for a, b in zip(half, single):
        torch.testing.assert_close(a.grad.float(), b.grad, atol=0.1, rtol=0.05)


def test_a_transformer_block_is_the_identity_until_its_gates_open():
    """adaLN-Zero: while the gates are zero, tokens pass bitwise unchanged; afterwards each token depends on all others."""
    block = HybridUNet2DModel(sample_size=8, num_classes=3, **TINY_HYBRID).transformer_blocks[0]
    tokens, embedding = torch.randn(2, 4, 16), torch.randn(2, 16)
    assert torch.equal(block(tokens, embedding), tokens)
    nn.init.normal_(block.to_film.weight)
    tokens.requires_grad_()
    block(tokens, embedding)[0, 0].sum().backward()
    assert (tokens.grad[0].abs().sum(dim=1) > 0).all() and not tokens.grad[1].any()


def test_hybrid_tokens_know_where_they_are():
    """The prediction for a constant image changes if the positions are reversed."""
    unet = make_unet("hybrid")
    before = unet(torch.ones(1, 3, 8, 8), 5, torch.tensor([0])).sample
    with torch.no_grad():
        unet.positions.copy_(unet.positions.flip(0))
    assert not torch.allclose(unet(torch.ones(1, 3, 8, 8), 5, torch.tensor([0])).sample, before)


def test_the_hybrids_skip_passes_the_transformer_by():
    """Even if the tokens contribute nothing, the prediction depends on the image."""
    unet = make_unet("hybrid")
    nn.init.zeros_(unet.up.weight)
    sample, labels = _inputs(2)
    one, other = unet(sample, 5, labels[[0, 0]]).sample
    assert (one - other).abs().max() > 1e-3


def test_class_tokens_are_read_beside_those_of_the_image():
    """With the sum of embeddings the same for all classes, the tokens still tell them apart; and none are in the output."""
    unet = make_unet("hybrid", num_class_tokens=2)
    nn.init.zeros_(unet.class_embedding.weight)
    sample = _inputs(2)[0]
    one, other = unet(sample[[0, 0]], 5, torch.tensor([0, 1])).sample
    assert one.shape == sample[0].shape and (one - other).abs().max() > 1e-4
    with torch.no_grad():
        unet.class_tokens.weight[1] = unet.class_tokens.weight[0]
    one, other = unet(sample[[0, 0]], 5, torch.tensor([0, 1])).sample
    torch.testing.assert_close(one, other)


def test_the_tokens_of_the_image_are_those_that_go_on():
    """While the gates are closed, the transformer passes all tokens on unchanged: class tokens then change nothing."""
    with_tokens, without = make_unet("hybrid", num_class_tokens=2), make_unet("hybrid")
    for block in with_tokens.transformer_blocks:
        nn.init.zeros_(block.to_film.weight)
        nn.init.zeros_(block.to_film.bias)
    without.load_state_dict({k: v for k, v in with_tokens.state_dict().items() if not k.startswith("class_tokens")})
    sample, labels = _inputs()
    torch.testing.assert_close(with_tokens(sample, 5, labels).sample, without(sample, 5, labels).sample)


def test_squared_relu_by_hand():
    block = make_unet("hybrid", activation="squared_relu").transformer_blocks[0]
    assert block.activation(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [0, 0, 9]


@pytest.mark.parametrize(
    "size, parameters, gflop", [("tiny", 0.2, 0.025), ("xs", 1.4, 0.15), ("s", 8.5, 0.8), ("m", 50, 6), ("l", 160, 20)]
)
def test_hybrid_sizes_cost_what_the_table_says(size, parameters, gflop):
    """For 32x32x3 images, at most so many million parameters and GFLOP in a forward pass of one image."""
    with torch.device("meta"):
        unet = HybridUNet2DModel(size=size)
    assert 0.5 * parameters < sum(p.numel() for p in unet.parameters()) / 1e6 <= parameters
    assert 0.5 * gflop < forward_flop(unet) / 1e9 <= gflop


def test_a_published_hybrid_does_not_change_with_the_table(tmp_path, monkeypatch):
    HybridUNet2DModel(sample_size=8, num_classes=3, size="tiny", pos_dim=32).save_pretrained(tmp_path)
    monkeypatch.setitem(HybridUNet2DModel.SIZES, "tiny", {**HybridUNet2DModel.SIZES["tiny"], "transformer_layers": 5})
    config = HybridUNet2DModel.from_pretrained(tmp_path).config
    assert (config.transformer_layers, config.pos_dim, list(config.block_out_channels)) == (2, 32, [16, 64])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"size": "xl"}, "size: expected one of tiny, xs, s, m, l, got 'xl'"),
        ({"sample_size": 10}, "sample_size: expected a multiple of 4"),
        ({"block_out_channels": (8, 16, 16)}, "block_out_channels: expected two"),
        ({"block_out_channels": (8, 36)}, "block_out_channels: expected a multiple of attention_head_dim=8 .* got 36"),
        ({"attention_head_dim": 0}, "attention_head_dim: expected a positive"),
        ({"mlp_ratio": 0}, "mlp_ratio: expected a positive"),
        ({"activation": "gelu"}, "activation: expected one of silu, squared_relu, got 'gelu'"),
        ({"num_class_tokens": -1}, "num_class_tokens: expected 0 or a positive whole number, got -1"),
    ],
)
def test_hybrid_arguments_out_of_range(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_unet("hybrid", **arguments)


def test_round_trip_through_a_folder(tiny_unet, tmp_path):
    tiny_unet.save_pretrained(tmp_path)
    loaded = type(tiny_unet).from_pretrained(tmp_path)
    sample, labels = _inputs()
    assert torch.equal(loaded(sample, 5, labels).sample, tiny_unet(sample, 5, labels).sample)
    assert loaded.config.num_classes == 3 and list(loaded.config.block_out_channels) == [8, 16]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"sample_size": 9}, "sample_size: expected a multiple of 2 .* got 9"),
        ({"sample_size": 2**63}, "sample_size: expected at most 32768, got"),
        ({"layers_per_block": 2**63}, "layers_per_block: expected at most 1024, got"),
        ({"patch_size": 3}, "multiple of 6"),
        ({"patch_size": 0}, "patch_size: expected a positive"),
        ({"attention_head_dim": 0}, "attention_head_dim: expected a positive"),
        ({"num_classes": 0}, "num_classes: expected a positive"),
        ({"block_out_channels": ()}, "block_out_channels"),
        ({"pos_dim": 12}, "pos_dim: expected a multiple of 8, got 12"),
        ({"dropout": 1.0}, "dropout"),
        ({"attention_resolutions": (16,)}, r"attention_resolutions: expected sizes among .*\[8, 4\], got \[16\]"),
        (
            {"block_out_channels": (8, 36), "attention_head_dim": 8},
            "block_out_channels: expected a multiple of attention_head_dim=8 .* got 36",
        ),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_unet("attention", **arguments)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"sample": torch.zeros(4, 3, 8, 9)}, r"sample: expected shape \(batch, 3, 8, 8\), got \(4, 3, 8, 9\)"),
        ({"sample": torch.zeros(4, 1, 8, 8)}, r"got \(4, 1, 8, 8\)"),
        ({"sample": torch.zeros(3, 8, 8)}, "sample: expected"),
        ({"timestep": torch.zeros(3)}, r"timestep: expected one number, or a tensor of shape \(4,\), got shape \(3,\)"),
        ({"class_labels": None}, "class_labels: expected 4 labels, got None; .* 3"),
        ({"class_labels": torch.zeros(3, dtype=torch.int64)}, r"class_labels: expected shape \(4,\)"),
        ({"class_labels": torch.zeros(4)}, "torch.float32"),
        ({"class_labels": torch.tensor([0, 1, 2, 4])}, "from 0 to 2, or 3 for the null label, got 4"),
        ({"class_labels": torch.tensor([0, 1, 2, -1])}, "got -1"),
    ],
)
def test_inputs_that_do_not_fit(tiny_unet, change, words):
    sample, labels = _inputs()
    with pytest.raises(ValueError, match=words):
        tiny_unet(**{"sample": sample, "timestep": 5, "class_labels": labels, **change})


def test_the_study_networks_defaults():
    """The defaults are those of the study: 32x32x3, 10 classes, pos_dim 1024, no patches."""
    for class_ in (SimpleUNet2DModel, AttentionUNet2DModel):
        config = class_().config
        assert (config.sample_size, config.in_channels, config.num_classes) == (32, 3, 10)
        assert (config.pos_dim, config.patch_size) == (1024, 1)
