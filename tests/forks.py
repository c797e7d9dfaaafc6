"""
Runs programs in forks of this process, which has imported torch: an import takes seconds.

A line of stdin is one program, a line of stdout the exit statuses of its ranks, both in JSON. See
run_program() in conftest.py.
"""

import gc
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path

import torch.distributed

GRACE = 60  # seconds that the other ranks have to end after one has failed


def serve():
    """Run programs until stdin ends. Returns, in each process that is to run one, the program with
    the environment of its rank."""
    gc.freeze()  # else each fork copies all of torch's objects when it ends
    requests = os.fdopen(os.dup(0), 'rb')  # a program may still change the encoding of sys.stdin
    for line in requests:
        program = json.loads(line)
        store, port = start_store(program['timeout']) if program['ranks'] > 1 else (None, None)
        processes = []
        for rank in range(program['ranks']):
            process = os.fork()
            if process == 0:
                program['env'] |= variables_of(rank, program['ranks'], port)
                return program
            processes.append(process)
        statuses = wait_for(processes, program['timeout'])
        if store:
            os.kill(store, signal.SIGKILL)
            os.waitpid(store, 0)
        print(json.dumps(statuses), flush=True)
    os._exit(0)


def start_store(timeout):
    """(process, port) of a store like torchrun's, which the ranks meet at and which outlives
    them."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        store = torch.distributed.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
        os.write(writer, str(store.port).encode())
        time.sleep(timeout + GRACE)
        os._exit(0)
    os.close(writer)
    port = os.read(reader, 10).decode()
    os.close(reader)
    return process, port


def variables_of(rank, ranks, port):
    """The variables by which torchrun tells a process its rank."""
    if ranks == 1:
        return {}
    names = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks, LOCAL_WORLD_SIZE=ranks)
    names |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, TORCHELASTIC_USE_AGENT_STORE=True)
    return {name: str(value) for name, value in names.items()}


def wait_for(processes, timeout):
    """Their exit statuses. They are killed after `timeout` seconds."""
    statuses = dict.fromkeys(processes)
    deadline = time.monotonic() + timeout
    while None in statuses.values():
        process, status = os.waitpid(-1, os.WNOHANG)
        if process in statuses:
            statuses[process] = os.waitstatus_to_exitcode(status)
            if statuses[process]:
                deadline = min(deadline, time.monotonic() + GRACE)
        elif time.monotonic() < deadline:
            time.sleep(0.005)
        else:
            for process in processes:
                if statuses[process] is None:
                    os.kill(process, signal.SIGKILL)
    return list(statuses.values())


def become(program):
    """Take over the streams, folder, environment and arguments of the program."""
    for number, path, mode in (
        (0, program['stdin'], os.O_RDONLY),
        (1, program['stdout'], os.O_WRONLY | os.O_APPEND),
        (2, program['stderr'], os.O_WRONLY | os.O_APPEND),
    ):
        file = os.open(path, mode)
        os.dup2(file, number)
        os.close(file)
    os.chdir(program['cwd'])
    os.environ.clear()
    os.environ.update(program['env'])
    sys.argv = program['argv']
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    sys.path[1:1] = filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))


if __name__ == '__main__':
    become(serve())
    runpy.run_path(sys.argv[0], run_name='__main__')
