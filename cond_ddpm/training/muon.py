"""Muon for the hidden matrices and AdamW for all other parameters, as one optimizer.

May import: torch. `optimizer.py` chooses the matrices; `checkpoint.py` keeps its state like any optimizer's.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

# The coefficients of each iteration's quintic, by the number of iterations. Jordan's five take singular values from
# [0.01, 1] to [0.7, 1.2]. The three take them to [0.72, 1.28]: each is the quintic nearest to 1 on what the one before leaves,
# and 2% beyond, for bfloat16 rounds (Amsel 2025, "The Polar Express", thm. 3.1).
QUINTICS = {
    5: ((3.4445, -4.7750, 2.0315),) * 5,
    3: ((8.0934, -23.6204, 17.4462), (3.5779, -2.5779, 0.4886), (2.6461, -1.9024, 0.4183)),
}


def orthogonalize(matrices: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """U V^T of each matrix's U S V^T, about: singular values near 1, by Newton-Schulz iteration (Jordan 2024, Muon).

    Args:
        matrices: (N, rows, columns).
        iterations: one of `QUINTICS`; each is three products of matrices, in bfloat16.

    Returns:
        The same shape, in bfloat16.
    """
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]  # Frobenius, at least the largest singular value
    for iteration, (a, b, c) in enumerate(QUINTICS[iterations]):
        gram = x @ x.mT
        if iteration == 0 and iterations < 5:
            # Not (sum s^2)^(1/2) but (sum s^4)^(1/4), which is nearer to the largest singular value, so that small ones need
            # not grow so far.
            norms = 1.01 * gram.flatten(1).norm(dim=1).clamp(min=1e-7).sqrt()[:, None, None]
            x, gram = x / norms, gram / norms.square()
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # (a + b G + c G^2) x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum for matrices (Jordan 2024), AdamW (Loshchilov 2017) for all other parameters.

    A matrix's update has the root mean square that AdamW's has, about 0.2 (Liu 2025, sec. 2.2), so that both take one
    learning rate and weight decay. torch's own Muon refuses convolutions and updates one matrix at a time. This one updates
    all matrices of a shape together, which is faster.

    Args:
        matrices: parameters of two dimensions or more; a convolution counts as a matrix with a row for each output channel.
        others: all other parameters.
        lr, betas, eps, weight_decay: as for `torch.optim.AdamW`.
        momentum: of the matrices.
        iterations: of `orthogonalize`.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        iterations: int = 5,
    ):
        self.iterations = iterations
        groups = [{"params": list(matrices), "muon": True}, {"params": list(others), "muon": False}]
        super().__init__(
            groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum": momentum, "steps": 0}
        )

    @torch.no_grad()
    def step(self, closure=None):  # without types, as in torch's own optimizers: the base class promises to call a closure
        """One step. `closure` must be None, which is what accelerate passes."""
        if closure is not None:
            raise ValueError("closure: expected None; compute the gradients before the step.")
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                group["steps"] += 1
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                (self._muon if group["muon"] else self._adam)(group, parameters, [p.grad for p in parameters])

    def _moments(self, parameters: list[torch.Tensor], name: str) -> list[torch.Tensor]:
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in parameters]

    def _muon(self, group: dict, parameters: list[torch.Tensor], grads: list[torch.Tensor]) -> None:
        momentum = self._moments(parameters, "momentum")
        torch._foreach_lerp_(momentum, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, momentum, group["momentum"])  # Nesterov's
        same = defaultdict(list)
        for parameter, update in zip(parameters, updates):
            same[parameter.flatten(1).shape].append((parameter, update))
        for shape, pairs in same.items():
            orthogonal = orthogonalize(torch.stack([update.flatten(1) for _, update in pairs]), self.iterations)
            for (parameter, _), update in zip(pairs, orthogonal):
                parameter.add_(update.view_as(parameter), alpha=-0.2 * max(shape) ** 0.5 * group["lr"])

    def _adam(self, group: dict, parameters: list[torch.Tensor], grads: list[torch.Tensor]) -> None:
        (beta1, beta2), steps = group["betas"], group["steps"]
        first, second = self._moments(parameters, "exp_avg"), self._moments(parameters, "exp_avg_sq")
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        # Without the bias of both moments (Kingma 2014, alg. 1).
        roots = torch._foreach_sqrt(second)
        torch._foreach_div_(roots, (1 - beta2**steps) ** 0.5)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(parameters, first, roots, -group["lr"] / (1 - beta1**steps))
