"""Ask a searcher for points, score them in any way, and tell it: no loop, no log, no selection.

Here a point is the coefficients of two experts of a linear model, which is scored by how near it comes to a third one.
"""

import torch

import evomerge as em


def main() -> float:
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    start = base.state_dict()
    red, green = ({name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in start.items()} for _ in range(2))
    target = {name: start[name] + 0.8 * (red[name] - start[name]) + 0.3 * (green[name] - start[name]) for name in start}
    candidate = em.Candidate(em.Family(base, red=red, green=green), space="tensor")

    def distance(x) -> float:
        state = candidate.apply(x).state_dict()
        return sum(float(((state[name] - target[name]) ** 2).sum()) for name in target)

    space = candidate.space
    searcher = em.CmaEs(space, space.start({"weight": 0.5}), seed=0, sigma=0.2)
    for _ in range(60):
        batch = searcher.ask()
        searcher.tell(batch.scored([-distance(x) for x in batch.points]))
    best = searcher.incumbents()["best"].x
    print(dict(zip(space.names, best.round(2).tolist(), strict=True)))
    return distance(best)


if __name__ == "__main__":
    print("distance:", main())
