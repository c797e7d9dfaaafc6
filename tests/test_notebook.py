"""docs/colab.ipynb runs from the first cell to the last, and is committed without outputs."""

import json
import os
import tempfile

import pytest
from conftest import ROOT
from test_minimind import tree  # noqa: F401  fixture

import checkpoint

PATH = ROOT / 'docs' / 'colab.ipynb'
STAGES = ('games', 'pretrain', 'mid', 'sft', 'dpo', 'rl', 'brief')


def test_the_notebook_has_no_outputs():
    cells = json.loads(PATH.read_text(encoding='utf-8'))['cells']
    code = [cell for cell in cells if cell['cell_type'] == 'code']
    assert len(code) >= 10
    assert [cell for cell in code if cell['outputs'] or cell['execution_count']] == []


@pytest.mark.slow
def test_the_notebook_runs(tree, oracle):  # noqa: F811
    """With 3 steps per stage, in a folder that holds the repository: nothing is cloned."""
    nbclient = oracle('nbclient')
    nbformat = oracle('nbformat')
    # 1) Shorten it by its parameters
    book = nbformat.read(PATH, as_version=4)
    parameters = next(cell for cell in book.cells if cell.cell_type == 'code')
    assert parameters.source.count('quick = False') == 1
    parameters.source = parameters.source.replace('quick = False', 'quick = True')

    # 2) Run it from docs/, where it lies. An error in a cell is raised here. The kernel listens at
    # Unix sockets: a TCP port, free when it is chosen, may be taken before
    (tree / 'docs').mkdir()
    where = {'metadata': {'path': str(tree / 'docs')}}
    with tempfile.TemporaryDirectory() as folder:  # its path is short enough for a socket's
        settings = oracle('traitlets.config').Config()
        settings.KernelManager.transport = 'ipc'
        settings.KernelManager.ip = f'{folder}/kernel'
        nbclient.NotebookClient(
            book, timeout=3600, kernel_name='python3', resources=where, config=settings
        ).execute()

    # 3) Every stage has run, and every plot is there
    for stage in STAGES:
        assert checkpoint.load(tree / 'out/tinyworld' / stage / 'ckpt.pt')['step'] == 3
    outputs = [output for cell in book.cells for output in cell.get('outputs', [])]
    printed = ''.join(output.get('text', '') for output in outputs)
    assert 'Traceback' not in printed and 'SystemExit' not in printed
    assert 'Who are you? ->' in printed
    calls = ''.join(cell.source for cell in book.cells).count("\nplot('")
    assert calls == 5 == sum('image/png' in output.get('data', {}) for output in outputs)
    assert not (tree / 'docs/flatgpt').exists() and os.listdir(tree / 'docs') == []
