"""The files that start runs: accelerate reads its own, and the SLURM script saves, requeues and goes on.

SLURM is played by two small programs on the PATH; the training is real.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from forks import PATIENCE
from toy_run import FSDP2, tiny_folder

from sa2va_hf.arguments import parse
from sa2va_hf.data.prepare.run import prepare

ROOT = Path(__file__).parents[2]
ACCELERATE = sorted((ROOT / "configs/accelerate").glob("*.yaml"))
SBATCH = ROOT / "scripts/slurm/train.sbatch"
KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "multi_node": DistributedType.MULTI_GPU,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}


def launched_with(path):
    """What accelerate makes of a file: its arguments."""
    return _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(path), "train.py"]))[0]


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_reads_its_files(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config_from_file(str(path))
    assert config.distributed_type == KINDS[path.stem]
    known = vars(launch_command_parser().parse_args(["train.py"]))
    for section in ("fsdp_config", "deepspeed_config"):
        assert set(yaml.safe_load(path.read_text()).get(section) or {}) <= set(known), "a key that nothing reads"
    arguments = launched_with(path)
    assert arguments.num_processes == 8 * config.num_machines
    if config.distributed_type == DistributedType.DEEPSPEED:
        assert Path(arguments.deepspeed_config_file).is_file() and arguments.use_deepspeed


def test_the_tests_of_fsdp2_run_with_what_the_file_sets():
    environment = prepare_multi_gpu_env(launched_with(ROOT / "configs/accelerate/fsdp2.yaml"))
    assert {name: environment[name] for name in FSDP2} == FSDP2
    exported = re.search(r"^# export (.*)$", SBATCH.read_text(), re.M).group(1)
    assert dict(pair.split("=") for pair in exported.split()) == FSDP2


@pytest.mark.parametrize("path", sorted((ROOT / "configs/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_runs_of_256_samples_per_step(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = yaml.safe_load(path.read_text())
    deepspeed = ["--deepspeed", ""] if "deepspeed" in settings else []
    model, data, training = parse([str(path), *deepspeed])
    gpus = int(re.search(r"--num_processes (\d+)", path.read_text()).group(1))
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps * gpus == 256
    assert Path(settings.get("deepspeed", str(path))).is_file() and data.train_entries and model.lora_rank == 128


def test_the_slurm_script_is_a_shell_script():
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    assert os.access(SBATCH, os.X_OK)


def slurm(folder, task):
    """A machine of one process: `srun` runs the command in its own place, `scontrol` notes what it is asked."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "srun").write_text(f"#!/bin/bash\nshift\nexport SLURM_PROCID=0 SLURM_LOCALID=0\n{task}\n")
    (programs / "scontrol").write_text(f'#!/bin/bash\necho "$@" >> {folder}/asked.txt\necho localhost\n')
    for name in ("srun", "scontrol"):
        (programs / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "1",
        "SLURM_NTASKS_PER_NODE": "1",
        "OMP_NUM_THREADS": "1",
    }


def asked(folder):
    return (folder / "asked.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("task", "signalled", "status", "requeued"),
    [
        ("exit 0", False, 0, False),
        ("exit 3", False, 3, False),
        ("trap 'exit 0' USR1; touch ready; while :; do sleep 0.05; done", True, 0, True),
        ("touch ready; exec sleep 60", True, 0, True),  # killed by the signal, while it loads the model
        ("trap 'exit 1' USR1; touch ready; while :; do sleep 0.05; done", True, 1, False),
    ],
    ids=["finished", "failed", "saved", "not begun", "failed to save"],
)
def test_the_job_goes_back_into_the_queue_when_it_was_stopped_and_only_then(
    tmp_path, task, signalled, status, requeued
):
    with subprocess.Popen(["bash", str(SBATCH), "run.yaml"], env=slurm(tmp_path, task), cwd=tmp_path) as job:
        if signalled:
            patience = time.monotonic() + PATIENCE
            while not (tmp_path / "ready").exists():
                assert time.monotonic() < patience and job.poll() is None
                time.sleep(0.02)
            job.send_signal(signal.SIGUSR1)
        assert job.wait(PATIENCE) == status
    assert ("requeue 7" in asked(tmp_path)) == requeued


@pytest.mark.slow
def test_a_signalled_job_saves_and_goes_on(tmp_path):
    prepare("shapes", None, "train", tmp_path / "data", options={"count": 12, "num_frames": 2, "max_objects": 2})
    settings = {
        "model_name_or_path": str(tiny_folder(str(tmp_path))),
        "train_data": str(tmp_path / "data"),
        "lora_rank": 4,
        "max_steps": 400,
        "save_steps": 2,
        "save_total_limit": 2,
        "disable_tqdm": True,
        "output_dir": str(tmp_path / "run"),
        "dataloader_num_workers": 1,
        "dataloader_pin_memory": False,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    environment = slurm(tmp_path, 'exec "$@"')
    command = ["bash", str(SBATCH), str(tmp_path / "run.yaml")]
    with open(tmp_path / "log.txt", "w") as log:
        options = {"env": environment, "cwd": ROOT, "stdout": log, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, **options) as job:
            patience = time.monotonic() + PATIENCE
            while not list((tmp_path / "run").glob("checkpoint-*")):
                assert time.monotonic() < patience and job.poll() is None, (tmp_path / "log.txt").read_text()[-3000:]
                time.sleep(0.02)
            job.send_signal(signal.SIGUSR1)
            assert job.wait(PATIENCE) == 0, (tmp_path / "log.txt").read_text()[-3000:]
        assert "requeue 7" in asked(tmp_path) and "SIGUSR1: step" in (tmp_path / "log.txt").read_text()
        stopped = max(int(folder.name[11:]) for folder in (tmp_path / "run").glob("checkpoint-*"))
        assert stopped < 400 and not (tmp_path / "run/trainer_state.json").exists()
        subprocess.run([*command, "--max_steps", str(stopped + 1)], check=True, timeout=PATIENCE, **options)
    assert asked(tmp_path).count("requeue 7") == 1 and (tmp_path / "run/adapter_model.safetensors").is_file()
    assert (tmp_path / f"run/checkpoint-{stopped + 1}").is_dir()
