"""Training on a GPU, side by side with TRL and Unsloth: random-weight Llamas of 1 and 8 billion parameters.

    python bench/gpu.py                        every case; bench/results/gpu.json keeps the newest of each
    python bench/gpu.py --only 1b/chat slots   cases whose name contains one of these words
    python bench/gpu.py --tiny                 two small cases on whatever device there is, nothing kept: does it run?

**How it is measured.** Each engine has the card to itself, in a process of its own, turn and turn about; `--rounds`
turns each. A turn warms up (kernels are compiled, memory is found) and then does the same steps for everybody; the
figure is the median turn, the spread its lowest and highest. Losses of the measured steps are compared with luthier's.

**What is equal.** Rows and their order, LoRA of rank 16 on all linear layers, 16 examples an update, learning rate,
AdamW, bfloat16 base, float32 adapters. Peers run as their makers advise: TRL without padding and with flash attention
and Liger's kernels where those are installed, Unsloth with its own kernels and activation checkpointing off.

**Data.** chat: eight turns, about 800 tokens, nothing shared. shared: 1,024 tokens of which the first three quarters
are the same in every row, 3 in 100 trained. slots: N adapters on one base, each with its own rows, 1 or 4 an update.

**Figures.** Tokens (as given) a second; peak memory of the card; MFU: the least work (`kit/work.py`, each shared prefix
once) over the card's own rate on a large bfloat16 product, measured in the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from kit import machine, work, workloads
from kit.workloads import Shape

from luthier import hardware, spec
from luthier.data.batches import epoch_order
from luthier.data.examples import Encoded

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "gpu.json"
ENGINES = ("luthier", "trl", "unsloth")
RANK, ALPHA, LEARNING_RATE, SEED, WARM = 16, 32, 1e-4, 0, 3
SHAPES = {
    "tiny": Shape(64, 2, 4, 2, 128),
    "1b": Shape(2048, 16, 32, 8, 8192),
    "8b": Shape(4096, 36, 32, 8, 14336),
}
Told = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Case:
    """What is trained: `slots` adapters, each with `batch` examples an update, for `steps` measured updates."""

    shape: str
    data: str
    slots: int = 1
    batch: int = 16
    steps: int = 10
    budget: int = 16_384  # stored tokens of luthier's micro-batch

    @property
    def name(self) -> str:
        each = f"/slots{self.slots}x{self.batch}" if self.data == "slots" else ""
        return f"{self.shape}/{self.data}{each}"

    @property
    def engines(self) -> tuple[str, ...]:
        return ENGINES if self.data != "slots" else ENGINES[:1]


CASES = (
    *(Case(shape, data) for shape in ("1b", "8b") for data in ("chat", "shared")),
    *(Case(shape, "slots", n, b) for shape in ("1b", "8b") for b in (1, 4) for n in (1, 2, 4, 8, 16, 32)),
)
TINY = (Case("tiny", "chat", 1, 4, 2), Case("tiny", "slots", 3, 1, 2))


def rows_of(case: Case, slot: int = 0) -> list[Encoded]:
    """The rows of all updates of a slot, in the order they come."""
    count = case.batch * (WARM + case.steps)
    if case.data == "shared":
        rows = workloads.prefixed(count, 1024, 0.75, seed=SEED)
    else:
        turns, each = workloads.rows_of("chat", SEED + slot), 1 if case.shape == "tiny" else 8
        told = [[turns[(each * i + k) % len(turns)] for k in range(each)] for i in range(count)]
        rows = [Encoded(f"row{i}", *map(np.concatenate, _columns(parts))) for i, parts in enumerate(told)]
    return [rows[i] for i in epoch_order(len(rows), SEED, 0)]


def _columns(parts: Sequence[Encoded]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [part.ids_L for part in parts], [part.train_L for part in parts]


# ------------------------------------------------------------------------------------------------------------ engines


def with_luthier(case: Case, folder: str, told: Told) -> None:
    from luthier.models import base
    from luthier.models.methods import attach
    from luthier.runs import Stepped
    from luthier.train.loop import Job, train

    method = spec.Lora(rank=RANK, alpha=ALPHA, dropout=0.0, target_modules=("all-linear",))
    tuned = attach(base.load(spec.Model(name=folder), method), [method] * case.slots, range(case.slots))
    training = spec.Training(
        batch_size=case.batch,
        accumulate_steps=1,
        num_epochs=1,
        learning_rate=LEARNING_RATE,
        schedule="constant",
        warmup=0.0,
        weight_decay=0.0,
        gradient_checkpointing=False,
        save_every=1_000_000,
    )
    with tempfile.TemporaryDirectory() as place:
        jobs = [
            Job(f"slot{i}", training, SEED, _undrawn(rows_of(case, i)), [], Path(place) / str(i))
            for i in range(case.slots)
        ]
        for event in train(tuned, jobs, budget=case.budget):
            if isinstance(event, Stepped) and event.run == f"slot{case.slots - 1}":
                told(event.loss)


def _undrawn(drawn: list[Encoded]) -> list[Encoded]:
    """Rows which the loop will draw in the order given."""
    rows = list(drawn)
    for place, i in enumerate(epoch_order(len(drawn), SEED, 0)):
        rows[i] = drawn[place]
    return rows


def with_trl(case: Case, folder: str, told: Told) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    flash = importlib.util.find_spec("flash_attn") is not None
    device = hardware.machine().device
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32 if device == "cpu" else torch.bfloat16,
        attn_implementation="flash_attention_2" if flash else "sdpa",
        device_map={"": device},
    )
    lora = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    liger = importlib.util.find_spec("liger_kernel") is not None
    _train_with_trl(case, folder, peft.get_peft_model(model, lora), told, padding_free=flash, use_liger_kernel=liger)


def with_unsloth(case: Case, folder: str, told: Told) -> None:
    from unsloth import FastLanguageModel  # before anything that it patches

    model, _ = FastLanguageModel.from_pretrained(folder, max_seq_length=4096, load_in_4bit=False)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=ALPHA, lora_dropout=0, target_modules=names, use_gradient_checkpointing=False
    )
    _train_with_trl(case, folder, model, told)


def _train_with_trl(case: Case, folder: str, model: torch.nn.Module, told: Told, **chosen: object) -> None:
    import datasets
    import trl
    from transformers import AutoTokenizer, TrainerCallback

    class Heard(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_) -> None:
            if "loss" in (logs or {}):
                told(float(logs["loss"]))

    rows = rows_of(case)
    labels = [np.where(row.train_L, row.ids_L, -100).tolist() for row in rows]
    table = datasets.Dataset.from_dict({"input_ids": [row.ids_L.tolist() for row in rows], "labels": labels})
    cpu = hardware.machine().device == "cpu"
    with tempfile.TemporaryDirectory() as place:
        said = trl.SFTConfig(
            output_dir=place, per_device_train_batch_size=case.batch, num_train_epochs=1, learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, logging_steps=1, report_to=[],
            save_strategy="no", use_cpu=cpu, bf16=not cpu, gradient_checkpointing=False, max_length=None,
            train_sampling_strategy="sequential", dataset_kwargs={"skip_prepare_dataset": True}, disable_tqdm=True,
            **chosen,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(folder)
        trl.SFTTrainer(
            model=model, args=said, train_dataset=table, processing_class=tokenizer, callbacks=[Heard()]
        ).train()


# ---------------------------------------------------------------------------------------------------------- measuring


def turn(engine: str, case: Case, folder: str) -> dict:
    """One engine's turn, in this process: seconds of the measured steps, their losses, the card's peak memory."""
    losses: list[float] = []
    clock = [0.0]

    def told(loss: float) -> None:  # a loss has been read: the device is done with all before it
        losses.append(loss)
        if len(losses) == WARM:
            clock[0] = time.perf_counter()
        elif len(losses) == WARM + case.steps:
            clock[0] = time.perf_counter() - clock[0]

    {"luthier": with_luthier, "trl": with_trl, "unsloth": with_unsloth}[engine](case, folder, told)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"seconds": clock[0], "losses": losses, "peak_bytes": peak}


def turns(case: Case, folder: Path, rounds: int) -> Iterator[tuple[str, dict | str]]:
    """Every engine's turns, each in a process of its own; a text says why one gave none."""
    for engine in case.engines * rounds:
        if importlib.util.find_spec(engine) is None:
            yield engine, "not installed"
            continue
        job = json.dumps({"engine": engine, "case": asdict(case), "folder": str(folder)})
        done = subprocess.run([sys.executable, __file__, "--turn", job], capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        yield engine, json.loads(lines[-1]) if done.returncode == 0 and lines else done.stderr.strip()[-300:]


def card_rate(device: str, side: int = 8192) -> float:
    """bfloat16 operations a second of a large product, best of ten; on a CPU its float32 rate."""
    if device != "cuda":
        return machine.matrix_rate()
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(10):
        torch.cuda.synchronize()
        started = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def measure(case: Case, folder: Path, rounds: int, rate: float) -> dict:
    """A case's figures, as the results file holds them."""
    given, least = 0, 0.0
    for slot in range(case.slots):
        rows = rows_of(case, slot)[WARM * case.batch :]
        given += sum(len(row.ids_L) for row in rows)
        for start in range(0, len(rows), case.batch):
            least += work.least_flops(SHAPES[case.shape], "lora", RANK, 0, rows[start : start + case.batch])
    heard: dict[str, list[dict]] = {}
    skipped: dict[str, str] = {}
    for engine, answer in turns(case, folder, rounds):
        if isinstance(answer, str):
            skipped[engine] = answer
        else:
            heard.setdefault(engine, []).append(answer)
    engines = {}
    for engine, answers in heard.items():
        seconds = [answer["seconds"] for answer in answers]
        ours, theirs = heard["luthier"][0]["losses"], answers[0]["losses"]
        engines[engine] = {
            "tokens_per_second": round(given / median(seconds)),
            "spread": [round(given / max(seconds)), round(given / min(seconds))],
            "mfu": round(least / median(seconds) / rate, 4),
            "peak_mb": round(max(answer["peak_bytes"] for answer in answers) / 1e6),
            "first_loss": theirs[0],
            "loss_difference": max(abs(a - b) for a, b in zip(ours, theirs, strict=True)),
        }
    return {"machine": _card() | machine.facts(), "rate_tflops": rate / 1e12, "skipped": skipped, "engines": engines}


def _card() -> dict:
    found = hardware.machine()
    return {"device": found.name, "device_bytes": found.memory_bytes, "cuda": torch.version.cuda}


def _base(shape: str, shelf: Path, device: str) -> Path:
    """A folder with the random base, made on the device in the precision it is used in."""
    folder = shelf / shape
    if not (folder / "config.json").exists():
        torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
        with torch.device(device):
            workloads.make_model(SHAPES[shape], folder, positions=4096)
        torch.set_default_dtype(torch.float32)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turn", default=None, help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.turn:
        job = json.loads(said.turn)
        print(json.dumps(turn(job["engine"], Case(**job["case"]), job["folder"])))
        return 0
    device = hardware.machine().device
    if device != "cuda" and not said.tiny:
        print("there is no CUDA device here; `--tiny` shows whether the bench itself runs")
        return 1
    rate = card_rate(device)
    with tempfile.TemporaryDirectory(prefix="luthier-bench-") as shelf:
        for case in TINY if said.tiny else CASES:
            if not any(word in case.name for word in said.only):
                continue
            result = measure(case, _base(case.shape, Path(shelf), device), 1 if said.tiny else said.rounds, rate)
            print(case.name, json.dumps({key: result[key] for key in ("engines", "skipped")}), flush=True)
            if not said.tiny:
                kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
                RESULTS.write_text(json.dumps(kept | {case.name: result}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
