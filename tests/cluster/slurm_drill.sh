#!/usr/bin/env bash
# A drill on a real SLURM: the smoke preset end to end through profiles/slurm, one job cancelled on the way and resumed
# by the same command, results compared with a local run's. Sets up one node, by itself, in a temporary folder, and
# removes it again. Debian: apt-get install slurmctld slurmd slurm-client munge; pip install -e '.[cluster]'; as root.
set -euo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)
place=$(mktemp -d /tmp/slurm_drill.XXXXXX)
conf=/etc/slurm/slurm.conf # where srun inside a job looks: the plugin hands no SLURM_* variable on
daemons=()

say() { printf '== %s\n' "$*"; }
fail() { printf 'slurm_drill: %s\n' "$*" >&2; exit 1; }
finish() {
  status=$?
  scancel --user=root --quiet 2>/dev/null || true
  for pid in "${daemons[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  [ "$(readlink "$conf")" != "$place/slurm.conf" ] || rm "$conf"
  if [ "$status" -eq 0 ]; then rm -rf "$place"; else echo "slurm_drill: what is left: $place" >&2; fi
}
trap finish EXIT

[ "$(id -u)" -eq 0 ] || fail "run it as root (in a container, say): SLURM's daemons start jobs of users"
for tool in munged slurmctld slurmd sbatch squeue scancel; do
  command -v "$tool" >/dev/null || fail "$tool is missing; apt-get install slurmctld slurmd slurm-client munge"
done
python -c 'import snakemake_executor_plugin_slurm' 2>/dev/null || fail "pip install -e '.[cluster]' first"

[ ! -e "$conf" ] || fail "$conf exists: this machine has a SLURM of its own"

start_slurm() {
  mkdir -p "$place"/{munge,ctld,slurmd,log}
  chmod 0711 "$place"
  (umask 077 && head -c 1024 /dev/urandom >"$place/munge/key")
  munged --foreground --force --key-file="$place/munge/key" --socket="$place/munge/socket" \
    --pid-file="$place/munge/pid" --log-file="$place/munge/log" --seed-file="$place/munge/seed" >"$place/log/munged" 2>&1 &
  daemons+=($!)
  mkdir -p "$(dirname "$conf")"
  ln -sf "$place/slurm.conf" "$conf"
  cat >"$place/slurm.conf" <<CONF
ClusterName=drill
SlurmctldHost=$(hostname -s)(localhost)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$place/munge/socket
CredType=cred/munge
StateSaveLocation=$place/ctld
SlurmdSpoolDir=$place/slurmd
SlurmctldPidFile=$place/ctld/pid
SlurmdPidFile=$place/slurmd/pid
SlurmctldLogFile=$place/log/slurmctld
SlurmdLogFile=$place/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2
MinJobAge=3600
KillWait=5
ReturnToService=2
NodeName=$(hostname -s) NodeAddr=localhost CPUs=$(nproc) RealMemory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
PartitionName=drill Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  slurmctld -D >"$place/log/slurmctld.out" 2>&1 &
  daemons+=($!)
  slurmd -D >"$place/log/slurmd.out" 2>&1 &
  daemons+=($!)
  for _ in $(seq 60); do
    sinfo -h -o %T 2>/dev/null | grep -q idle && return
    sleep 1
  done
  tail -n 5 "$place"/log/* >&2
  fail "no idle node after a minute"
}

copy() { # the workflow alone: the package is installed
  mkdir -p "$1"
  cp -r "$repository"/{Snakefile,workflows,config,baselines,profiles} "$1"
}

# A longer full-precision training than the preset's, so that there is time to cancel it.
settings=(--config preset=smoke set=train.steps=400,train.save_every=10)
on_slurm() {
  snakemake --workflow-profile profiles/slurm --jobs 4 --slurm-no-account \
    --default-resources runtime=20 mem_mb=1500 --set-resources train:mem_mb=1500 \
    --slurm-status-command squeue --slurm-init-seconds-before-status-checks 3 --seconds-between-status-checks 2 \
    --latency-wait 5 "${settings[@]}" -- reproduce_table
}

say "a local run, to compare with"
copy "$place/local"
(cd "$place/local" && snakemake --workflow-profile none --cores all --quiet all "${settings[@]}" -- reproduce_table) \
  >"$place/local.log" 2>&1 || { tail -20 "$place/local.log"; fail "the local run failed"; }

say "SLURM $(slurmctld -V | cut -d' ' -f2) on one node"
start_slurm
sinfo -l

say "the same through profiles/slurm, until the full-precision training has saved its state"
copy "$place/cluster"
cd "$place/cluster"
on_slurm >"$place/first.log" 2>&1 &
run=$!
job=
for _ in $(seq 600); do
  if ls state/smoke/full_precision/W32A32/seed0/step*.pt >/dev/null 2>&1; then
    job=$(squeue -h -t RUNNING -o '%i %k' | awk '/rule_train/ {print $1; exit}')
    [ -n "$job" ] && break
  fi
  kill -0 "$run" 2>/dev/null || break
  sleep 0.2
done
[ -n "$job" ] || { tail -30 "$place/first.log"; fail "saw no training job to cancel"; }
squeue -o '%.6i %.40k %.9T %.6M'

say "scancel $job"
scancel "$job"
if wait "$run"; then fail "snakemake did not notice that its job was cancelled"; fi
grep -iE 'cancel|Error in rule' "$place/first.log" | head -3
[ ! -e results/smoke/full_precision/W32A32/seed0/model.safetensors ] || fail "the training had ended before it was cancelled"

say "the same command again"
on_slurm >"$place/second.log" 2>&1 || { tail -30 "$place/second.log"; fail "the second run failed"; }
grep -h 'goes on from step' logs/smoke/full_precision/W32A32/seed0/train.log || fail "the training did not go on where it was cut"

say "results against the local run's"
python - "$place/local" "$place/cluster" <<'PY'
import hashlib, json, sys
from pathlib import Path

from safetensors.numpy import load_file


def result(folder):
    """Every tensor of the packed model, every loss, every score: all but times and paths."""
    tensors = load_file(folder / "packed.safetensors")
    digest = hashlib.sha256(b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors)))
    losses, scores = (json.loads((folder / name).read_text()) for name in ("train.json", "metrics.json"))
    return digest.hexdigest()[:12], losses["losses"], scores["scores"]


local, cluster = map(Path, sys.argv[1:])
rows = sorted(path.parent.relative_to(local) for path in local.glob("results/smoke/*/*/seed*/metrics.json"))
assert len(rows) == 3, rows
for row in rows:
    alone, drilled = result(local / row), result(cluster / row)
    assert alone == drilled, f"{row}: differs from the local run's"
    print(f"{row}: tensors {alone[0]}, {len(alone[1])} losses, FD {alone[2]['FD']:.6f}: equal")
PY
say "passed in $SECONDS s"
