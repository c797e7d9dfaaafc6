"""
CORE: 22 tasks for base models, from DCLM (Li et al., 2024, arXiv:2406.11794). docs/core.md has the
rules and the tasks.

    tasks = load_bundle('data/core/eval_bundle', limit=500)    # python data/core/prepare.py
    results = Core(model, tokenizer, tasks).run()              # prints a line for each task
    core_numbers(results)                                      # {'core': 0.11, 'core/copa': 0.62, …

A prompt has a few solved examples, then a question. No text is generated: a prompt is completed by
each possible answer, and the losses of the answers' tokens decide.

The completed prompts of an example differ only near their ends. They become one row of the forward
pass, a tree: the tokens that all begin with stand in it once, and each branch attends to them and
to itself. Rows are batched by length. Logits are computed only where an answer is predicted.

Left out on purpose: task types that generate text, and few-shot examples of another file.
"""

import csv
import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import console
import runtime
from conversation import read_rows
from engine import evaluating
from model import GPT
from tasks import centred

BUNDLE = Path(__file__).resolve().parent / 'data' / 'core' / 'eval_bundle'
HINT = 'run: python data/core/prepare.py'
BLOCK = 64  # examples that are batched with each other; a block runs on one rank
TOKENS = 2**14  # of a forward pass, with padding, at most
CPU_TOKENS = 2**11  # the same on a CPU, where 2**14 took up to twice as long
LOGITS = 2**25  # numbers in a piece of the logits, at most

# {task: (examples in the prompt, percent that guessing scores)} of published scores: DCLM's
# version 1. Its version 2 has other percentages, so its scores do not compare
PUBLISHED = dict(
    hellaswag_zeroshot=(0, 25), jeopardy=(10, 0), bigbench_qa_wikidata=(10, 0), arc_easy=(10, 25),
    arc_challenge=(10, 25), copa=(0, 50), commonsense_qa=(10, 20), piqa=(10, 50),
    openbook_qa=(0, 25), lambada_openai=(0, 0), hellaswag=(10, 25), winograd=(0, 50),
    winogrande=(0, 50), bigbench_dyck_languages=(10, 0), agi_eval_lsat_ar=(3, 20),
    bigbench_cs_algorithms=(10, 0), bigbench_operators=(10, 0), bigbench_repeat_copy_logic=(10, 0),
    squad=(10, 0), coqa=(0, 0), boolq=(10, 62), bigbench_language_identification=(10, 9.1),
)  # fmt: skip


class Task(NamedTuple):
    name: str
    kind: str  # a key of KINDS
    shots: int  # solved examples before the question, at most
    delimiter: str  # between question and answer
    baseline: float  # the share that guessing gets right
    examples: list[dict]  # shuffled, then cut to the limit


class Result(NamedTuple):
    """One task's score."""

    name: str
    shots: int
    examples: int
    accuracy: float
    error: float  # two standard errors of the accuracy
    centred: float  # 0: guessing, 1: perfect
    error_centred: float
    seconds: float


# -----------------------------------------------------------------------------
# the bundle: core.yaml, eval_meta_data.csv, eval_data/**.jsonl


class Kind(NamedTuple):
    """What a row of eval_data holds for a type of task."""

    texts: tuple[str, ...]  # keys of texts
    options: str  # the key of a list of texts, of which number `gold` is right; '' if it has none


KINDS = {
    'multiple_choice': Kind(('query',), 'choices'),
    'schema': Kind(('continuation',), 'context_options'),
    'language_modeling': Kind(('context', 'continuation'), ''),
}


def load_bundle(folder: str | Path, limit: int = 0) -> list[Task]:
    """The tasks of a bundle, each with its first `limit` examples after shuffling; 0: with all.
    SystemExit, one line, for whatever is missing or wrong."""
    folder = Path(folder)
    for name in ('core.yaml', 'eval_meta_data.csv'):
        if not (folder / name).is_file():
            raise SystemExit(f'{folder / name}: no such file, expected the bundle of CORE; {HINT}')
    listed = read_settings(folder / 'core.yaml')
    if not listed:
        raise SystemExit(f'{folder / "core.yaml"}: no tasks below icl_tasks; {HINT}')
    names = {str(settings.get('label')) for _, settings in listed}
    baselines = read_baselines(folder / 'eval_meta_data.csv', names)
    return [make_task(folder, where, settings, baselines, limit) for where, settings in listed]


def make_task(folder: Path, where: str, settings: dict, baselines: dict, limit: int) -> Task:
    """A task of core.yaml, whose lines from `where` on gave the settings."""
    # 1) Its settings
    for key in ('label', 'dataset_uri', 'icl_task_type', 'num_fewshot'):
        if key not in settings:
            raise SystemExit(f'{where}: the task has no {key}')
    name = str(settings['label'])
    kind = settings['icl_task_type']
    if kind not in KINDS:
        expected = f'expected one of {", ".join(KINDS)}'
        raise SystemExit(f'{where}: icl_task_type of {name} is {kind!r}, {expected}')
    shots = settings['num_fewshot']
    shots = shots[0] if isinstance(shots, list) and shots else shots
    if not isinstance(shots, int) or shots < 0:
        raise SystemExit(f'{where}: num_fewshot of {name} is {shots!r}, expected [0] or more')
    if name not in baselines:
        raise SystemExit(f'{where}: {folder / "eval_meta_data.csv"} has no row for {name}')

    # 2) Its examples
    path = folder / 'eval_data' / str(settings['dataset_uri'])
    if not path.is_file():
        raise SystemExit(f'{where}: {path} does not exist; {HINT}')
    examples = [check_example(kind, row, at) for at, row in read_rows(path)]
    if not examples:
        raise SystemExit(f'{path}: no examples; {HINT}')
    random.Random(1337).shuffle(examples)
    examples = examples[: limit or None]
    delimiter = str(settings.get('continuation_delimiter', ' '))
    return Task(name, kind, shots, delimiter, baselines[name], examples)


def check_example(kind: str, row: dict, where: str) -> dict:
    """The row. SystemExit that begins with where, 'file:line', if a key is missing or wrong."""
    texts, options = KINDS[kind]
    for key in texts:
        blank_answer = key == 'continuation' and not str(row.get(key)).strip()
        if not isinstance(row.get(key), str) or blank_answer:
            raise SystemExit(f'{where}: {key} is {row.get(key)!r:.60}, expected text')
    if not options:
        return row
    found = row.get(options)
    is_list = isinstance(found, list) and all(isinstance(option, str) for option in found)
    if not is_list or len(found) < 2:
        raise SystemExit(f'{where}: {options} is {found!r:.60}, expected a list of 2 texts or more')
    gold = row.get('gold')
    if type(gold) is not int or not 0 <= gold < len(found):
        raise SystemExit(f'{where}: gold is {gold!r:.60}, expected 0 to {len(found) - 1}')
    return row


def read_baselines(path: Path, wanted: set[str]) -> dict[str, float]:
    """{task: the share that guessing gets right} of the wanted tasks. The file has rows for many
    others."""
    found = {}
    reader = csv.DictReader(read_text(path).splitlines(keepends=True))
    for row in reader:
        where = f'{path}:{reader.line_num}'
        name = row.get('Eval Task')
        percent = row.get('Random baseline')
        if name is None or percent is None:
            raise SystemExit(f"{where}: no 'Eval Task' or no 'Random baseline'; {HINT}")
        if name not in wanted:
            continue
        if not re.fullmatch(r'\d{1,2}(\.\d*)?', percent.strip()):
            expected = 'expected a percentage below 100'
            raise SystemExit(f'{where}: Random baseline is {percent!r:.60}, {expected}')
        found[name] = 0.01 * float(percent)
    return found


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise SystemExit(f'{path}: no UTF-8 at byte {error.start}; {HINT}') from None


# A line of core.yaml
ENTRY = re.compile(
    r"""
    \s* (- (?= \s | $))? \s*          # a dash begins a task
    (?: (\w+): (?: \s+ (              # a key, and its value:
          " (?: [^"\\] | \\. )* "      # in quotes, with escapes
        | ' (?: [^'] | '' )* '        # in quotes, which are doubled inside
        | \[ [^]]* \]                 # a list
        | [^\s"'[#] (?: [^#] | (?<= \S) \# )*?   # plain
    ))? )?
    \s* (?: (?<! \S) \# .* )?         # a comment
    """,
    re.VERBOSE,
)


def read_settings(path: Path) -> list[tuple[str, dict]]:
    """
    ('file:line', {key: value}) for each task below `icl_tasks:`.

    Reads the part of YAML that such files use, so that no package is needed: `- key: value`, one
    key per line. SystemExit for a line in another form.
    """
    tasks = []
    inside = False
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if re.match(r'\w', line):  # a key of the file, not of a task
            inside = line.startswith('icl_tasks:')
            continue
        found = ENTRY.fullmatch(line)
        if not inside or not line.strip():
            continue
        if not found or not (found[1] or tasks):
            raise SystemExit(f'{path}:{number}: {line.strip()!r:.60}, expected - key: value')
        dash, key, value = found.groups()
        if dash:
            tasks.append((f'{path}:{number}', {}))
        if key:
            try:
                tasks[-1][1][key] = parse(value or '')
            except ValueError:
                expected = 'expected text with the escapes of JSON'
                raise SystemExit(f'{path}:{number}: {key} is {value:.60}, {expected}') from None
    return tasks


def parse(value: str) -> str | int | list:
    if value.startswith('"'):
        return json.loads(value)
    if value.startswith("'"):
        return value[1:-1].replace("''", "'")
    if value.startswith('['):
        return [parse(item.strip()) for item in value[1:-1].split(',')]
    return int(value) if re.fullmatch(r'\d+', value) else value


def describe(tasks: Sequence[Task]) -> str:
    """Whether scores on these tasks compare with published ones."""
    found = {task.name: (task.shots, round(100 * task.baseline, 6)) for task in tasks}
    if found == PUBLISHED:
        return f"CORE: {len(tasks)} tasks, baselines of DCLM's version 1"
    other = [name for name in {**PUBLISHED, **found} if found.get(name) != PUBLISHED.get(name)]
    return (
        'the score does not compare with published ones: task, shots or baseline differ from '
        f"CORE with DCLM's version 1 in {', '.join(other)}"
    )


# -----------------------------------------------------------------------------
# prompts


def completed(task: Task, example: dict) -> list[str]:
    """The question completed by each possible answer."""
    delimiter = task.delimiter
    if task.kind == 'multiple_choice':
        return [example['query'] + delimiter + choice for choice in example['choices']]
    if task.kind == 'schema':
        options = example['context_options']
        return [option + delimiter + example['continuation'] for option in options]
    return [example['context'].strip() + delimiter + example['continuation']]


def gold(task: Task, example: dict) -> int:
    """Which of the completed questions is right."""
    return 0 if task.kind == 'language_modeling' else example['gold']


def prompts(task: Task, index: int) -> list[str]:
    """
    The prompts of an example: solved examples, then the question completed by each possible answer.
    Language modelling has one answer; its first prompt lacks it, which tells where it begins.

        Capital of Italy? Rome

        Capital of Spain?

        Capital of Italy? Rome

        Capital of Spain? Madrid
    """
    # 1) Solved examples: drawn from all others, fewer if there are not enough
    example = task.examples[index]
    others = task.examples[:index] + task.examples[index + 1 :]
    drawn = random.Random(1234 + index).sample(others, min(task.shots, len(others)))
    before = ''.join(completed(task, other)[gold(task, other)] + '\n\n' for other in drawn)

    # 2) The question
    texts = [before + text for text in completed(task, example)]
    if task.kind == 'language_modeling':
        # without blanks at its end, which belong to the answer's first token
        question = (before + example['context'].strip() + task.delimiter).rstrip()
        texts = [question, *texts]
    return texts


class Row(NamedTuple):
    """The tokens of a completed prompt, of which the last ones are scored."""

    ids: np.ndarray
    start: int  # ids[start:] is scored; at least 1, because no token predicts the first one


def shared(rows: Sequence[np.ndarray]) -> int:
    """How many tokens at their beginnings the rows have in common."""
    shortest = min(map(len, rows))
    same = np.all([row[:shortest] == rows[0][:shortest] for row in rows], axis=0)
    return shortest if same.all() else int(same.argmin())


def make_rows(kind: str, texts: Sequence[np.ndarray], block_size: int) -> list[Row]:
    """The rows of an example from the ids of its prompts, at most the last block_size of each."""
    # 1) Which tokens are scored: at least one, though an answer may begin another one
    shortest = min(map(len, texts))
    if kind == 'schema':
        suffix = min(shared([ids[::-1] for ids in texts]), shortest - 1)
        starts = [len(ids) - suffix for ids in texts]
    elif kind == 'multiple_choice':
        starts = [min(shared(texts), shortest - 1)] * len(texts)
    else:
        starts = [shared(texts)]
        texts = texts[1:]

    # 2) Cut from the left
    rows = []
    for ids, start in zip(texts, starts):
        cut = max(0, len(ids) - block_size)
        rows.append(Row(ids[cut:], max(1, start - cut)))
    return rows


def read_examples(
    task: Task, indices: Sequence[int], tokenizer, block_size: int
) -> list[list[Row]]:
    """The rows of each of these examples."""
    texts = [prompts(task, index) for index in indices]
    encoded = tokenizer.encode_batch(chain.from_iterable(texts))
    examples = []
    for of_example in texts:
        ids = [np.append(tokenizer.bos, next(encoded)).astype(np.int64) for _ in of_example]
        examples.append(make_rows(task.kind, ids, block_size))
    return examples


# -----------------------------------------------------------------------------
# trees: rows of a forward pass that hold several rows


class Tree(NamedTuple):
    """
    Rows laid out as one. The rows `a b c` and `a b d e` become

        ids        a b c d e      the tokens that all begin with, then the rest of each row
        positions  0 1 2 2 3      their positions in their own rows
        branches   0 0 1 2 2      0: of all rows. A token attends to these, and to its own branch
    """

    ids: np.ndarray
    positions: np.ndarray
    branches: np.ndarray
    places: list[np.ndarray]  # for each row: where in ids its scored tokens are predicted
    targets: list[np.ndarray]  # for each row: its scored tokens


def make_tree(rows: Sequence[Row]) -> Tree:
    inputs = [row.ids[:-1] for row in rows]  # the last token is predicted, not read
    trunk = shared(inputs)
    ids = [inputs[0][:trunk]]
    positions = [np.arange(trunk)]
    branches = [np.zeros(trunk, dtype=np.int64)]
    places = []
    end = trunk
    for number, own in enumerate(inputs, start=1):
        length = len(own) - trunk
        ids.append(own[trunk:])
        positions.append(np.arange(trunk, len(own)))
        branches.append(np.full(length, number))
        places.append(np.append(positions[0], np.arange(end, end + length)))
        end += length
    return Tree(
        *map(np.concatenate, (ids, positions, branches)),
        places=[place[row.start - 1 :] for place, row in zip(places, rows)],
        targets=[row.ids[row.start :] for row in rows],
    )


def group(rows: Sequence[Row], block_size: int) -> Iterator[Sequence[Row]]:
    """Rows, in order, that make trees of at most block_size tokens."""
    first = 0
    for end in range(2, len(rows) + 1):
        if len(make_tree(rows[first:end]).ids) > block_size:
            yield rows[first : end - 1]
            first = end - 1
    yield rows[first:]


class Branches:
    """Stands for a KVCache in the model's forward pass: it holds nothing, and says where the tokens
    of trees are and what they attend to."""

    def __init__(self, positions: torch.Tensor, branches: torch.Tensor):
        """positions, branches (B, T): see Tree."""
        own = branches[:, :, None] == branches[:, None, :]  # (B, T, T), query before key
        trunk = branches[:, None, :] == 0
        self.positions = positions
        self.branches = branches
        self.mask = (own | trunk).tril()[:, None]  # (B, 1, T, T)

    def begin(self, T: int) -> torch.Tensor:
        return self.positions

    def before(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, T) the id before each of inputs. Before a branch it is the trunk's last, whose place
        is its position."""
        places = torch.arange(inputs.shape[1], device=inputs.device)
        begins = self.branches != self.branches.roll(1, dims=1)
        places = torch.where(begins, self.positions, places) - 1
        return inputs.gather(1, places.clamp(min=0))

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        gqa = k.shape[1] < q.shape[1]
        return F.scaled_dot_product_attention(q, k, v, self.mask, enable_gqa=gqa)


# -----------------------------------------------------------------------------
# scores


class Answer(NamedTuple):
    """How well the model predicts the scored tokens of a row."""

    loss: float  # nats per token
    exact: bool  # each of them is the likeliest


def batches(trees: Sequence[Tree], max_rows: int, max_tokens: int) -> Iterator[list[int]]:
    """Indices of the trees, batched by length, the longest first."""
    order = sorted(range(len(trees)), key=lambda i: -len(trees[i].ids))
    while order:
        longest = len(trees[order[0]].ids)
        rows = max(1, min(max_rows, max_tokens // longest))
        yield order[:rows]
        order = order[rows:]


@torch.no_grad()
def score(model: GPT, examples: Sequence[Sequence[Row]], max_rows: int = 64) -> list[list[Answer]]:
    """An Answer for each row of each example."""
    # 1) Trees. Equal rows become one, so that rounding cannot make their losses differ
    trees = []
    names = []  # for each tree, those of its rows: (index of the example, ids)
    for index, rows in enumerate(examples):
        distinct = {row.ids.tobytes(): row for row in rows}
        for together in group(list(distinct.values()), model.config.block_size):
            trees.append(make_tree(together))
            names.append([(index, row.ids.tobytes()) for row in together])

    # 2) Batches
    found = {}
    device = model.transformer.wte.weight.device
    max_tokens = CPU_TOKENS if device.type == 'cpu' else TOKENS
    with evaluating(model), runtime.any_shape(device):
        for batch in batches(trees, max_rows, max_tokens):
            for index, answers in zip(batch, score_batch(model, [trees[i] for i in batch])):
                found.update(zip(names[index], answers))
    return [
        [found[index, row.ids.tobytes()] for row in rows] for index, rows in enumerate(examples)
    ]


def score_batch(model: GPT, trees: Sequence[Tree]) -> list[list[Answer]]:
    """An Answer for each row of each tree, by one forward pass."""
    # 1) The hidden states of all tokens. Padding is on the right, where nothing attends to it
    device = model.transformer.wte.weight.device
    longest = max(len(tree.ids) for tree in trees)

    def padded(arrays):
        rows = [np.pad(array, (0, longest - len(array))) for array in arrays]
        return torch.from_numpy(np.stack(rows)).to(device)  # (B, T)

    cache = None
    if any(tree.branches.any() for tree in trees):
        cache = Branches(
            padded(tree.positions for tree in trees), padded(tree.branches for tree in trees)
        )
    hidden = model.hidden(padded(tree.ids for tree in trees), cache)  # (B, T, C)

    # 2) Logits where a scored token is predicted, a piece at a time
    places = [b * longest + place for b, tree in enumerate(trees) for place in tree.places]
    targets = [target for tree in trees for target in tree.targets]
    wanted = hidden.flatten(0, 1)[torch.from_numpy(np.concatenate(places)).to(device)]  # (N, C)
    right = torch.from_numpy(np.concatenate(targets)).to(device)  # (N,)
    size = max(1, LOGITS // model.config.vocab_size)
    nats = []
    hits = []
    for x, target in zip(wanted.split(size), right.split(size)):
        logits = model.logits(x)
        nats.append(F.cross_entropy(logits, target, reduction='none'))
        hits.append(logits.argmax(-1) == target)

    # 3) An answer for each row, from its scored tokens
    sizes = [len(target) for target in targets]
    by_row = zip(torch.cat(nats).cpu().double().split(sizes), torch.cat(hits).cpu().split(sizes))
    answers = (Answer(float(losses.mean()), bool(exact.all())) for losses, exact in by_row)
    return [[next(answers) for _ in tree.targets] for tree in trees]


def is_right(task: Task, index: int, answers: Sequence[Answer]) -> bool:
    """Language modelling: every token of the answer is the likeliest. Otherwise: the right answer
    has the lowest loss per token, the first of equals."""
    if task.kind == 'language_modeling':
        return answers[0].exact
    losses = [answer.loss for answer in answers]
    return losses.index(min(losses)) == gold(task, task.examples[index])


class Core:
    """
    Evaluation by CORE.

        model, tokenizer    the tokenizer has <|bos|>, with which every prompt begins
        tasks               of load_bundle()
        max_rows            rows of a forward pass, at most; it changes nothing but rounding
        rank, world_size    blocks of examples are dealt to the ranks; results do not depend on it
    """

    def __init__(
        self, model: GPT, tokenizer, tasks: Sequence[Task], max_rows: int = 64, rank: int = 0,
        world_size: int = 1,
    ):  # fmt: skip
        if tokenizer.bos is None:
            raise SystemExit(
                'CORE begins every prompt with <|bos|>, which the tokenizer does not have; train '
                'on data with a BPE tokenizer'
            )
        self.model = model
        self.tokenizer = tokenizer
        self.tasks = tasks
        self.max_rows = max_rows
        self.rank = rank
        self.world_size = world_size

    def run(self) -> list[Result]:
        """All tasks. Rank 0 prints what they are, then a line for each as soon as it is done."""
        self.say(describe(self.tasks))
        self.say(f'{"task":<33}{"shots":>6}{"examples":>9}{"accuracy":>20}{"centred":>9}  seconds')
        results = []
        for task in self.tasks:
            began = perf_counter()
            grades = self.grade(task)
            result = summarise(task, grades, perf_counter() - began)
            self.say(line(result))
            results.append(result)
        core, error = mean(results)
        self.say(f'CORE {core:.4f} +- {error:.4f} (2 s.e.)')
        return results

    def grade(self, task: Task) -> list[float]:
        """1.0 for each example that the model gets right, else 0.0. Equal on all ranks."""
        grades = [0.0] * len(task.examples)
        block_size = self.model.config.block_size
        for start in range(self.rank * BLOCK, len(grades), self.world_size * BLOCK):
            indices = range(start, min(start + BLOCK, len(grades)))
            examples = read_examples(task, indices, self.tokenizer, block_size)
            for index, answers in zip(indices, score(self.model, examples, self.max_rows)):
                grades[index] = float(is_right(task, index, answers))
        return runtime.add_up(grades)

    def say(self, text: str) -> None:
        if self.rank == 0:
            print(console.printable(text), flush=True)


def summarise(task: Task, grades: Sequence[float], seconds: float) -> Result:
    accuracy = sum(grades) / len(grades)
    error = 2 * math.sqrt(accuracy * (1 - accuracy) / len(grades))
    return Result(
        name=task.name, shots=task.shots, examples=len(grades), accuracy=accuracy, error=error,
        centred=centred(accuracy, task.baseline), error_centred=error / (1 - task.baseline),
        seconds=seconds,
    )  # fmt: skip


def line(result: Result) -> str:
    accuracy = f'{100 * result.accuracy:.1f}% +- {100 * result.error:.1f}%'
    return (
        f'{result.name:<33}{result.shots:>6}{result.examples:>9}{accuracy:>20}'
        f'{result.centred:>9.4f}{result.seconds:>9.1f}'
    )


def mean(results: Sequence[Result]) -> tuple[float, float]:
    """(CORE: the mean of the centred accuracies, two standard errors of it)."""
    error = math.sqrt(sum(result.error_centred**2 for result in results)) / len(results)
    return sum(result.centred for result in results) / len(results), error


def core_numbers(results: Sequence[Result]) -> dict[str, float]:
    """What a log holds: CORE, and the accuracy of each task. {} without results."""
    if not results:
        return {}
    core, _ = mean(results)
    return {'core': core, **{f'core/{result.name}': result.accuracy for result in results}}
