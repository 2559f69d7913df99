"""Merge experts of a torch module that is no transformer: state dicts in memory, and a function as fitness.

A small network learns a curve, one expert for each half of it; the search finds how much of each expert every layer
needs to know both.
"""

import torch

import evomerge as em


class Net(torch.nn.Module):
    """Blocks are found by the names of parameters: `layers.0`, `layers.1`, ..."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(1, 16)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(2))
        self.head = torch.nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.embed(x))
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.head(x)


def train(net: Net, x: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        loss = torch.nn.functional.mse_loss(net(x), torch.sin(3 * x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def score(model: Net, items: list[em.Item]) -> list[float]:
    """Minus the squared error on each item, whose text is the input."""
    x = torch.tensor([[float(item.text)] for item in items])
    with torch.no_grad():
        return (-((model(x) - torch.sin(3 * x)) ** 2)).flatten().tolist()


def main() -> em.Result:
    torch.manual_seed(0)
    net, halves = Net(), {"left": torch.linspace(-1, 0, 64)[:, None], "right": torch.linspace(0, 1, 64)[:, None]}
    start = train(net, torch.cat([*halves.values()]), 30)
    experts = {}
    for name, x in halves.items():
        net.load_state_dict(start)
        experts[name] = train(net, x, 200)
    net.load_state_dict(start)
    candidate = em.Candidate(em.Family(net, experts), space="layer")
    tasks = {name: em.items(str(round(value, 4)) for value in x.flatten().tolist()) for name, x in halves.items()}
    return em.search(candidate, score, tasks, budget=60)


if __name__ == "__main__":
    result = main()
    print(result, result.coefficients["weight"], sep="\n\n")
