"""The candidates of a dalle system, drawn by several processes; how many does not change them.

They are local processes, or the ranks that torchrun or srun has started. A block of candidates is
drawn as a whole and with one thread, since more threads may add up in another order.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import numpy as np
import torch

from mezzotint.common.errors import UserError
from mezzotint.inference.build import DalleDrawer
from mezzotint.inference.config import DalleSystem
from models.systems.dalle import DalleSamples
from models.systems.sharing import Drawn, assemble, blocks, draw_share
from trainer import distributed

Progress = Callable[[int, int], None]
"""Called with the pictures drawn so far and their total."""
Told = Callable[[float], None]
"""Called with the part of a share that is drawn."""

BLOCK = 16
"""Candidates drawn together, from one generator: another number gives other pictures."""


@dataclass(frozen=True)
class Request:
    """`candidates` pictures of every caption."""

    system: DalleSystem
    captions: tuple[str, ...]
    candidates: int
    seed: int

    @property
    def total(self) -> int:
        """Pictures of all captions."""
        return len(self.captions) * self.candidates


def ranks() -> distributed.World:
    """The processes that torchrun or srun has started; a lone one without them."""
    return replace(distributed.place(), device=torch.device("cpu"))


def draw_candidates(request: Request, processes: int, progress: Progress) -> DalleSamples:
    """Draw with so many local processes, or with the ranks there are; all ranks get everything.

    Raises:
        UserError: a process was ended, or both local processes and ranks are asked for.
        UserError: the models cannot be read.
    """

    def told(part: float) -> None:
        progress(int(part * request.total), request.total)

    world = ranks()
    if world.size > 1:
        if processes > 1:
            raise UserError(
                f"--processes {processes}: {world.size} ranks draw already; leave the option out"
            )
        parts = drawn_by_ranks(request, world, told)
    elif processes == 1:
        parts = share_of(request, DalleDrawer.load(request.system, "auto"), 0, 1, told)
    else:
        parts = drawn_by_processes(request, processes, progress)
    return assemble(parts, len(request.captions), request.candidates)


def share_of(
    request: Request, drawer: DalleDrawer, rank: int, size: int, told: Told
) -> list[Drawn]:
    """What process `rank` of `size` draws."""
    with one_thread(), torch.inference_mode(), drawer.arithmetic():
        return draw_share(
            drawer.dalle,
            drawer.text(request.captions),
            None if drawer.ranker is None else drawer.ranker.text(request.captions),
            seed=request.seed,
            candidates=request.candidates,
            block=BLOCK,
            sampling=drawer.config.sampling,
            rank=rank,
            world=size,
            progress=lambda done, total: told(done / total),
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for tensors, and the old number again."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def drawn_by_ranks(request: Request, world: distributed.World, told: Told) -> list[Drawn]:
    """All candidates on every rank: each adds its own to the zeros of the others."""
    drawer = DalleDrawer.load(request.system, "auto")
    distributed.join(world)
    side, grid = drawer.image_size, drawer.dalle.dvae.grid
    images = torch.zeros(request.total, 3, side, side)
    codes = torch.zeros(request.total, *grid, dtype=torch.int64)
    scores = None if drawer.ranker is None else torch.zeros(request.total)
    for part in share_of(request, drawer, world.rank, world.size, told):
        rows = slice(part.first, part.first + len(part.codes))
        images[rows], codes[rows] = part.images, part.codes
        if scores is not None and part.scores is not None:
            scores[rows] = part.scores
    whole = Drawn(
        first=0,
        images=distributed.total(images),
        codes=distributed.total(codes),
        scores=None if scores is None else distributed.total(scores),
    )
    distributed.leave()
    return [whole]


@dataclass(frozen=True)
class Block:
    """A `Drawn` on its way from one process to another."""

    first: int
    images: np.ndarray
    codes: np.ndarray
    scores: np.ndarray | None


Message = float | list[Block] | str
"""The part that is drawn; all that was drawn; why nothing can be drawn."""


@dataclass(frozen=True)
class WorkerProcess:
    """A local process, and what it says."""

    process: SpawnProcess
    messages: "Connection[Message, Message]"
    pictures: int
    """Of its share."""


def drawn_by_processes(request: Request, count: int, progress: Progress) -> list[Drawn]:
    """Start `count` processes and bring together what they draw."""
    context = multiprocessing.get_context("spawn")
    helpers: list[WorkerProcess] = []
    try:
        for rank in range(count):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=help_out, args=(request, rank, count, theirs))
            process.start()
            theirs.close()
            share = blocks(request.total, BLOCK, rank, count)
            helpers.append(WorkerProcess(process, ours, sum(map(len, share))))
        return gathered(helpers, progress)
    finally:
        for helper in helpers:
            helper.process.terminate()
            helper.process.join()


def help_out(
    request: Request, rank: int, size: int, messages: "Connection[Message, Message]"
) -> None:
    """The life of a local process; the one that started it also ends it at Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        drawer = DalleDrawer.load(request.system, "auto")
        parts = share_of(request, drawer, rank, size, messages.send)
    except UserError as error:
        messages.send(str(error))
        return
    messages.send(
        [
            Block(
                part.first,
                part.images.float().numpy(),
                part.codes.numpy(),
                None if part.scores is None else part.scores.float().numpy(),
            )
            for part in parts
        ]
    )


def gathered(helpers: Sequence[WorkerProcess], progress: Progress) -> list[Drawn]:
    """Listen until every process has sent what it drew.

    Raises:
        UserError: a process refuses or is ended.
    """
    silent = {helper.messages: helper for helper in helpers}
    total = sum(helper.pictures for helper in helpers)
    done, parts = dict.fromkeys(silent, 0.0), list[Drawn]()
    while silent:
        ready = wait(list(silent))
        for end in [end for end in silent if end in ready]:
            try:
                message = end.recv()
            except EOFError:
                raise died(silent[end].process) from None
            match message:
                case float():
                    done[end] = message * silent[end].pictures
                    progress(int(sum(done.values())), total)
                case str():
                    raise UserError(message)
                case _:
                    parts.extend(unpacked(block) for block in message)
                    del silent[end]
    return parts


def unpacked(block: Block) -> Drawn:
    """The tensors again."""
    scores = None if block.scores is None else torch.from_numpy(block.scores)
    return Drawn(block.first, torch.from_numpy(block.images), torch.from_numpy(block.codes), scores)


def died(process: SpawnProcess) -> Exception:
    """What to say of a process that ended without a word."""
    process.join()
    code = process.exitcode or 0
    if code < 0:
        return UserError(
            f"a drawing process was ended by signal {-code}; each of them holds the models: "
            "try a smaller --processes"
        )
    return RuntimeError(f"a drawing process failed with exit code {code}; see above")
