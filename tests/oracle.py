"""The method as one plain loop in one process: the reference that every real, distributed run must equal bit for bit.

It imports nothing of the package. What it computes, in the order in which it does so: docs/method.md. Weights of a
model stand in a dict, parameter name -> tensor; letters follow the method's text: W is the committed model, X[i] the
model of client i, s[i] the value its active block started from, Delta[t, i] its progress in round t, sent[t, i] what
the server gets of it, e[i] what it has yet to get of client i's, K the local steps of a round. Buffers are not
exchanged. Set ``torch.set_num_threads(1)`` before comparing bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.oracle_codecs import arrives
from tests.oracle_low_rank import Told as Bases
from tests.oracle_low_rank import at_first, receive, send, tell
from tests.oracle_secure import Told, secure_sum

Weights = dict[str, Tensor]
MakeModel = Callable[[], nn.Module]
LossFn = Callable[[nn.Module, int, int], Tensor]
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class OracleConfig:
    """What a run is made of; the schedule is given from outside and has its own tests."""

    block_names: tuple[tuple[str, ...], ...]  # parameter names of each block
    schedule: tuple[int, ...]  # block index of each round
    n_clients: int
    total_steps: int  # optimizer steps a client makes in all; the last round may be short
    local_steps: int  # optimizer steps of a round
    delay_steps: int
    delay_warmup_rounds: int = 0  # rounds that have no delay, before those that have it
    in_flight_value: str = "local"  # "local" | "anchor"
    server: str = "sgd"  # "sgd" | "nesterov" | "adam" | "yogi"
    server_lr: float = 1.0
    server_lr_share: Callable[[int], float] = lambda round_index: 1.0  # of it in each round
    server_momentum: float = 0.9
    server_betas: tuple[float, float] = (0.9, 0.99)
    server_tau: float = 1e-3
    compression: str = "none"  # "none" | "bf16" | "int8" | "int4" | "topk" | "sparse", both ways, with error feedback
    group: int | None = None  # scalars of a step of int8 and int4, and those of which sparse sends one; None: usual
    keep: float = 1 / 16  # share that topk sends
    decay: float = 1.0  # share of what was left out that is added to what is sent next
    rank: int = 0  # columns of a matrix's factors, of which each exchange brings one; 0: no factors
    secure: int = 0  # bytes of a whole number of the secure sum of the deltas; 0: none. A codec is the commits' alone
    optimizer_state: str = "reset"  # "reset" | "kept": of a client's block, from one of its rounds to its next one
    warmup_steps: int = 0  # of each round, over which a client's learning rate grows
    proximal_mu: float = 0.0
    nonfinite: str = "stop"  # "stop" | "skip": a client whose progress in a round is not finite
    trains: Callable[[int, int], bool] = lambda client, step: True  # whether a client has data left for a step
    samples: Callable[[int, int], int] | None = None  # of a client's step, where they are its weight in the mean
    # Client -> the block it trains in a round; who is not in it sits the round out. Given with the round: the gradient
    # norm of each block that came with its newest commit. None: everybody trains what the schedule says.
    work: Callable[[int, dict[int, float]], dict[int, int]] | None = None

    def __post_init__(self) -> None:
        """Refuse what would otherwise be taken for something else in silence."""
        assert self.in_flight_value in ("local", "anchor") and self.server in ("sgd", "nesterov", "adam", "yogi")
        assert self.optimizer_state in ("reset", "kept") and self.nonfinite in ("stop", "skip")
        assert self.compression in ("none", "bf16", "int8", "int4", "topk", "sparse")
        assert self.n_clients >= 1 and self.local_steps >= 1 and self.delay_steps >= 0 and self.total_steps >= 0
        assert self.work or len(self.schedule) >= self.n_rounds, f"{self.n_rounds} rounds need as many entries"

    @property
    def n_rounds(self) -> int:
        """Rounds that are begun, a short last one among them."""
        return -(-self.total_steps // self.local_steps)

    def work_of(self, round_index: int, norms: dict[int, float]) -> dict[int, int]:
        """Client -> the block it trains in a round."""
        if self.work is not None:
            return self.work(round_index, norms)
        return dict.fromkeys(range(self.n_clients), self.schedule[round_index])

    def weight(self, client: int, round_index: int) -> int:
        """n_i of a client in a round in which it has trained."""
        if self.samples is None:
            return 1
        first, after = round_index * self.local_steps, (round_index + 1) * self.local_steps
        steps = range(first, min(after, self.total_steps))
        return sum(self.samples(client, step) for step in steps if self.trains(client, step))


@dataclass
class OracleResult:
    """What came out: everything is fp32, a parameter's tensor under its name."""

    weights: Weights  # W after the drain
    increments: list[tuple[int, int, Weights]]  # (round, block, W after - W before), in commit order
    deltas: dict[tuple[int, int], Weights]  # (round, client) -> Delta
    sent: dict[tuple[int, int], Weights]  # (round, client) -> what arrived of the delta and of what was kept before
    e: list[Weights]  # of each client: what of its deltas the server has not got yet
    e_server: Weights  # what of the server's increments the clients have not got yet
    work: list[dict[int, int]]  # of each round: client -> block


def transmit(config: OracleConfig, wanted: Weights) -> Weights:
    """Return what arrives of a block's values; it travels as one vector in the order of its names."""
    vector = torch.cat([value.reshape(-1) for value in wanted.values()])
    arrived = arrives(config.compression, vector, group=config.group, keep=config.keep)
    sizes = [value.numel() for value in wanted.values()]
    return {n: part.view_as(wanted[n]) for n, part in zip(wanted, arrived.split(sizes), strict=True)}


def run_oracle(
    config: OracleConfig, make_model: MakeModel, loss_fn: LossFn, make_optimizer: MakeOptimizer
) -> OracleResult:
    """Run the method. ``loss_fn(model, client, step)`` counts the steps of a client from 0, across rounds."""
    K, clients = config.local_steps, range(config.n_clients)
    q, r = divmod(config.delay_steps, K)
    first_delayed = config.delay_warmup_rounds
    names_of = config.block_names
    models = [make_model() for _ in clients]
    X = [dict(model.named_parameters()) for model in models]
    # Every client, also one that sits out, merges a commit after the same step: one W stands for the W of all of them.
    W = {name: value.detach().clone() for name, value in X[0].items()}
    adaptive = config.server in ("adam", "yogi")
    m = {name: torch.zeros_like(value) for name, value in W.items()}
    v = {name: torch.full_like(value, config.server_tau**2 if adaptive else 0.0) for name, value in W.items()}
    e = [{name: torch.zeros_like(value) for name, value in W.items()} for _ in clients]
    e_server = {name: torch.zeros_like(value) for name, value in W.items()}
    factors: dict[tuple[int, int], Bases] = {}  # (round, block) -> on what its exchange has projected
    bases: dict[int, Bases] = {}  # of each block, with its newest commit
    secure_mean: dict[tuple[int, int], tuple[Weights, Told | None]] = {}  # (round, block) -> G, and what was told
    told: dict[int, Told] = {}  # of each block, with its newest commit
    Delta: dict[tuple[int, int], Weights] = {}
    sent: dict[tuple[int, int], Weights] = {}
    in_flight: list[int] = []  # rounds submitted and not yet committed, oldest first
    increments: list[tuple[int, int, Weights]] = []
    s: list[Weights] = [{} for _ in clients]
    work: list[dict[int, int]] = []  # of each round: client -> block
    first_norm: dict[tuple[int, int], float] = {}  # (round, client) -> of the gradient at its first local step
    norms: dict[int, float] = {}  # of each block, with its newest commit

    def held(i: int, b: int) -> Weights:
        value = {name: W[name] for name in names_of[b]}
        for t in in_flight:
            if config.in_flight_value == "local" and work[t].get(i) == b and (t, i) in Delta:
                value = {name: value[name] + Delta[t, i][name] for name in value}
        return value

    def commit(t: int, b: int) -> None:
        before = {name: W[name] for name in names_of[b]}
        move: Weights = {}
        trained = [i for i in clients if (t, i) in sent and work[t][i] == b]
        n = {i: config.weight(i, t) for i in trained}
        if trained:
            norms[b] = sum(n[i] * first_norm[t, i] for i in trained) / sum(n.values())
        if config.secure:
            G_of, newly_told = secure_mean[t, b]
            if newly_told is not None:
                told[b] = newly_told
        if config.rank:
            G_of = mean_of_factors(t, b, trained, n)
        for name in before:
            G = torch.zeros_like(before[name])
            if config.secure or config.rank:
                G = G_of[name]
            elif trained:
                total = n[trained[0]] * sent[t, trained[0]][name]
                for i in trained[1:]:
                    total = total + n[i] * sent[t, i][name]
                G = total / sum(n.values())
            direction = G
            if config.server == "nesterov":
                v[name] = config.server_momentum * v[name] + G
                direction = G + config.server_momentum * v[name]
            elif adaptive:
                beta1, beta2 = config.server_betas
                m[name] = beta1 * m[name] + (1 - beta1) * G
                if config.server == "adam":
                    v[name] = beta2 * v[name] + (1 - beta2) * (G * G)
                else:
                    v[name] = v[name] - (1 - beta2) * (G * G) * torch.sign(v[name] - G * G)
                direction = m[name] / (torch.sqrt(v[name]) + config.server_tau)
            move[name] = config.server_lr * config.server_lr_share(t) * direction
        if config.compression == "none":
            W.update({name: before[name] + move[name] for name in before})
        else:
            wanted = {name: move[name] + config.decay * e_server[name] for name in before}
            for name, arrived in transmit(config, wanted).items():
                W[name] = before[name] + arrived
                e_server[name] = wanted[name] - (W[name] - before[name])
        increments.append((t, b, {name: W[name] - before[name] for name in before}))

    def mean_of_factors(t: int, b: int, trained: list[int], n: dict[int, int]) -> Weights:
        told, like = factors.pop((t, b)), {name: W[name] for name in names_of[b]}
        mean = {name: torch.zeros_like(value) for name, value in send(told, like)[0].items()}
        for name in mean:
            for place, i in enumerate(trained):
                part = n[i] * sent[t, i][name]
                mean[name] = mean[name] + part if place else part
            if trained:
                mean[name] = mean[name] / sum(n.values())
        bases[b] = tell(b, told, mean)
        return receive(told, mean, like)

    def submit_factors(t: int, b: int) -> None:
        told = factors[t, b] = bases.get(b) or at_first(b, {name: W[name] for name in names_of[b]}, config.rank)
        for i in (i for i in clients if work[t].get(i) == b and (t, i) in Delta):
            wanted = {name: delta + config.decay * e[i][name] for name, delta in Delta[t, i].items()}
            sent[t, i], left = send(told, wanted)
            e[i].update(left)

    def submit_securely(t: int, b: int) -> None:
        names, cohort = names_of[b], [i for i in clients if work[t].get(i) == b]
        trained = [i for i in cohort if (t, i) in Delta]

        def vector(values: Weights) -> Tensor:
            return torch.cat([values[name].reshape(-1) for name in names])

        def weights(values: Tensor) -> Weights:
            parts = values.split([W[name].numel() for name in names])
            return {name: part.view_as(W[name]) for name, part in zip(names, parts, strict=True)}

        done = secure_sum(
            {i: vector(Delta[t, i]) for i in trained},
            {i: vector(e[i]) for i in trained},
            {i: config.weight(i, t) for i in trained},
            n_cohort=len(cohort),
            width=config.secure,
            before=told.get(b),
            numel=vector(W).numel(),
        )
        secure_mean[t, b] = weights(done.mean), done.told
        for i in trained:
            e[i].update(weights(done.left[i]))
            sent[t, i] = {}

    def submit(t: int, i: int) -> None:
        if config.secure or config.rank:  # by all clients together, once what is due has been merged
            return
        if config.compression == "none":
            sent[t, i] = Delta[t, i]
            return
        wanted = {name: delta + config.decay * e[i][name] for name, delta in Delta[t, i].items()}
        sent[t, i] = transmit(config, wanted)
        e[i].update({name: wanted[name] - sent[t, i][name] for name in wanted})

    @torch.no_grad()
    def merge(t: int, active: dict[int, int] | None = None) -> None:
        blocks = sorted(set(work[t].values()))
        for b in blocks:
            commit(t, b)
        in_flight.remove(t)
        for b in blocks:
            for i in clients:
                value = held(i, b)
                is_active = active is not None and active.get(i) == b
                for name in names_of[b]:
                    if is_active:  # being trained: keep the progress since s, move what it stands on
                        X[i][name].copy_(X[i][name] + (value[name] - s[i][name]))
                    else:
                        X[i][name].copy_(value[name])
                if is_active:
                    s[i] = value

    kept: dict[tuple[int, int], torch.optim.Optimizer] = {}

    def optimizer_step(i: int, b: int, optimizer: torch.optim.Optimizer, step: int) -> None:
        for name in names_of[b]:
            if config.proximal_mu and (gradient := X[i][name].grad) is not None:
                X[i][name].grad = gradient.to_dense() + config.proximal_mu * (X[i][name].detach() - s[i][name])
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] *= min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
        optimizer.step()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    for t in range(config.n_rounds):
        work.append(config.work_of(t, dict(norms)))
        optimizers: dict[int, torch.optim.Optimizer] = {}
        for i, b in work[t].items():
            for name, parameter in X[i].items():
                parameter.requires_grad_(name in names_of[b])
                parameter.grad = None
            s[i] = {name: X[i][name].detach().clone() for name in names_of[b]}
            if config.optimizer_state == "reset" or (i, b) not in kept:
                kept[i, b] = make_optimizer([X[i][name] for name in names_of[b]])
            optimizers[i] = kept[i, b]

        for step in range(1, min(K, config.total_steps - t * K) + 1):
            for i, b in work[t].items():
                if not config.trains(i, t * K + step - 1):
                    continue
                optimizers[i].zero_grad()
                loss = loss_fn(models[i], i, t * K + step - 1)
                if loss.requires_grad:  # else it does not depend on the block: no gradient, and no step of its own
                    loss.backward()
                gradients = [X[i][name].grad for name in names_of[b]]
                parts = [g.to_dense().double().reshape(-1) for g in gradients if g is not None]
                whole = torch.cat(parts) if parts else torch.zeros(1)
                first_norm.setdefault((t, i), float(torch.linalg.vector_norm(whole)))
                optimizer_step(i, b, optimizers[i], step)
            if step == r and t - 1 - q >= first_delayed:  # r = 0 never is a step: then it merges at the join, below
                merge(t - 1 - q, active=work[t])

        with torch.no_grad():
            for i, b in work[t].items():
                if any(config.trains(i, step) for step in range(t * K, min((t + 1) * K, config.total_steps))):
                    progress = {name: X[i][name] - s[i][name] for name in names_of[b]}
                    if all(bool(value.isfinite().all()) for value in progress.values()):
                        Delta[t, i] = progress
                        submit(t, i)
                    else:  # as if it had not trained
                        assert config.nonfinite == "skip", f"the progress of client {i} in round {t} is not finite"
                        kept.pop((i, b))
            if r == 0 and q > 0 and t - q >= first_delayed:
                merge(t - q)
            for b in sorted(set(work[t].values())):
                if config.secure:
                    submit_securely(t, b)
                elif config.rank:
                    submit_factors(t, b)
            in_flight.append(t)
            for i, b in work[t].items():
                for name, value in held(i, b).items():
                    X[i][name].copy_(value)
            if config.delay_steps == 0 or t < first_delayed:
                merge(t)

    for t in list(in_flight):  # drain
        merge(t)
    assert all(torch.equal(X[i][name], W[name]) for i in clients for name in W), "after the drain a client holds not W"
    return OracleResult(W, increments, Delta, sent, e, e_server, work)


def run_fedbcd(config: OracleConfig, make_model: MakeModel, loss_fn: LossFn, make_optimizer: MakeOptimizer) -> Weights:
    """Blocking federated block coordinate descent, without any notion of delay; ``config.delay_steps`` is not read."""
    model = make_model()  # one working copy: clients take turns, each from the server's model
    parameters = dict(model.named_parameters())
    server = {name: parameter.data.clone() for name, parameter in parameters.items()}
    velocity: Weights = {}
    second: Weights = {}
    owed: list[Weights] = [{} for _ in range(config.n_clients + 1)]  # by the clients, and last by the server

    def send(values: Weights, owes: Weights) -> tuple[Weights, Weights]:
        if config.compression == "none":
            return values, values
        due = {name: owes[name] * config.decay for name in values if name in owes}
        wanted = {name: values[name] + due[name] if name in due else values[name] for name in values}
        return wanted, transmit(config, wanted)

    steps_left = config.total_steps
    for t, block in enumerate(config.schedule[: config.n_rounds]):
        n_steps = min(config.local_steps, steps_left)
        steps_left -= n_steps
        names = config.block_names[block]
        sums: Weights = {}
        shares = [config.weight(client, t) for client in range(config.n_clients)]
        for client in range(config.n_clients):
            for name, parameter in parameters.items():
                parameter.data = server[name].clone()
                parameter.grad = None
                parameter.requires_grad = name in names
            optimizer = make_optimizer([parameters[name] for name in names])
            for k in range(n_steps):
                model.zero_grad()
                loss_fn(model, client, t * config.local_steps + k).backward()
                optimizer.step()
            progress = {name: parameters[name].data - server[name] for name in names}
            wanted, arrived = send(progress, owed[client])
            owed[client].update({name: wanted[name] - arrived[name] for name in names})
            counted = {name: arrived[name] * shares[client] for name in names}
            sums = {name: sums[name] + counted[name] for name in names} if sums else counted
        moves: Weights = {}
        for name in names:
            mean = sums[name] / sum(shares)
            if config.server == "nesterov":
                kept = config.server_momentum * velocity[name] if name in velocity else torch.zeros_like(mean)
                velocity[name] = kept + mean
                mean = mean + config.server_momentum * velocity[name]
            if config.server in ("adam", "yogi"):
                (keep_first, keep_second), square = config.server_betas, mean.square()
                old = second[name] if name in second else torch.zeros_like(mean) + config.server_tau**2
                first = velocity[name] if name in velocity else torch.zeros_like(mean)
                velocity[name] = first * keep_first + mean * (1 - keep_first)
                change = square * (1 - keep_second)
                if config.server == "adam":
                    second[name] = old * keep_second + change
                else:  # towards the square, from either side
                    second[name] = torch.where(old > square, old - change, torch.where(old < square, old + change, old))
                mean = velocity[name] / (second[name].sqrt() + config.server_tau)
            moves[name] = config.server_lr * config.server_lr_share(t) * mean
        wanted, arrived = send(moves, owed[-1])
        for name in names:
            moved = server[name] + arrived[name]
            owed[-1][name] = wanted[name] - (moved - server[name])
            server[name] = moved
    return server
