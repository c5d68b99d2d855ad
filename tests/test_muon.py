"""Muon: orthogonal updates, which parameters get them, and its state in a checkpoint."""

import copy

import pytest
import torch
from conftest import make_unet
from torch import nn

from cond_ddpm.config import TrainConfig
from cond_ddpm.training.muon import QUINTICS, Muon, orthogonalize
from cond_ddpm.training.optimizer import make_optimizer


@pytest.mark.parametrize("iterations", QUINTICS)
@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16)])
def test_orthogonalize_makes_singular_values_near_one_and_keeps_directions(shape, iterations):
    """U S V^T -> U V^T, about: the quintics leave singular values within about 0.3 of 1."""
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, *shape, generator=generator)
    got = orthogonalize(matrices, iterations).float()
    assert got.shape == matrices.shape
    for matrix, result in zip(matrices, got):
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        inner = u.T @ result @ vt.T  # diagonal, if the directions are kept
        kept = s > 0.1 * s.max()  # five steps lift what is not much smaller than the largest
        assert ((inner.diagonal()[kept] - 1).abs() < 0.4).all()
        assert (inner - inner.diagonal().diag()).abs().max() < 0.1


def test_each_matrix_is_orthogonalized_by_itself():
    matrices = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalize(matrices)[1:], orthogonalize(matrices[1:]))


def _gradients(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_what_is_no_matrix_gets_adamw():
    ours = nn.Linear(6, 5)
    theirs = copy.deepcopy(ours)
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    optimizers = Muon([], ours.parameters(), **settings), torch.optim.AdamW(theirs.parameters(), **settings)
    for step in range(5):
        for module, optimizer in zip((ours, theirs), optimizers):
            _gradients(module, step)
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_a_matrix_moves_by_what_torch_muon_moves_it():
    """torch's own, with AdamW's root mean square; the iteration in bfloat16 (8 bits) is rounded in another order."""
    ours = nn.Linear(32, 16, bias=False)
    theirs, start = copy.deepcopy(ours), ours.weight.detach().clone()
    mine = Muon(ours.parameters(), [], lr=0.01, weight_decay=0.1)
    torchs = torch.optim.Muon(theirs.parameters(), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        for module, optimizer in ((ours, mine), (theirs, torchs)):
            _gradients(module, step)
            optimizer.step()
    assert (ours.weight - theirs.weight).norm() < 0.02 * (theirs.weight - start).norm()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_is_the_matrix_of_its_output_channels(memory_format):
    conv, linear = nn.Conv2d(4, 8, 3, bias=False).to(memory_format=memory_format), nn.Linear(36, 8, bias=False)
    linear.weight.data = conv.weight.data.flatten(1).clone()
    _gradients(conv, 0)
    conv.weight.grad = conv.weight.grad.to(memory_format=memory_format)
    linear.weight.grad = conv.weight.grad.flatten(1).clone()
    for module in (conv, linear):
        Muon(module.parameters(), [], lr=0.1).step()
    torch.testing.assert_close(conv.weight.flatten(1), linear.weight)


def test_state_goes_through_a_checkpoint():
    first = nn.Linear(4, 4)
    whole = Muon([first.weight], [first.bias], lr=0.1)
    _gradients(first, 0)
    whole.step()
    second = copy.deepcopy(first)
    resumed = Muon([second.weight], [second.bias], lr=0.1)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for module, optimizer in ((first, whole), (second, resumed)):
        _gradients(module, 1)
        optimizer.step()
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)


@pytest.mark.parametrize("model", ["simple", "attention", "hybrid"])
def test_hidden_matrices_get_muon_and_each_parameter_one_of_the_two(model):
    unet = make_unet(model)
    names = {id(parameter): name for name, parameter in unet.named_parameters()}
    matrices, others = (
        {names[id(p)] for p in group["params"]} for group in make_optimizer(TrainConfig(optimizer="muon"), unet).param_groups
    )
    assert matrices | others == set(names.values()) and not matrices & others
    assert all(name.endswith("weight") for name in matrices) and any("conv1" in name for name in matrices)
    assert {"class_embedding.weight", "conv_in.weight", "conv_out.weight"} <= others
    assert ("positions" in others) == (model == "hybrid")
