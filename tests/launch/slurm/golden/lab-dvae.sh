#!/bin/bash
# Stage dvae of quickstart, on lab.
# Written by `mezzotint submit`, anew each time: change the cluster file rather than this one.
#SBATCH --job-name=quickstart/dvae
#SBATCH --partition=batch
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=3000M
#SBATCH --time=1:00:00
#SBATCH --signal=B:USR2@60
#SBATCH --export=AWS_ACCESS_KEY_ID,AWS_SECRET_ACCESS_KEY,MLFLOW_TRACKING_URI
#SBATCH --chdir=/shared/mezzotint
#SBATCH --output=/shared/mezzotint/runs/quickstart/dvae/logs/job.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --kill-on-invalid-dep=yes

root=/shared/mezzotint/runs/quickstart
directory=/shared/mezzotint/runs/quickstart/dvae
cwd=/shared/mezzotint
python=/shared/mezzotint/.venv/bin/python

# The processes meet on the first node, at a port of this start's own.
start=$(cksum <<<"$directory $SLURM_JOB_ID ${SLURM_RESTART_COUNT:-0}")
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((10000 + ${start%% *} % 20000))
export MASTER_ADDR MASTER_PORT
export MEZZOTINT_CACHE=/scratch/mezzotint-"$SLURM_JOB_USER"
export MEZZOTINT_JOB=$directory
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1

# The job ends here, with exit code $1.
finish() {
    echo "$1" >"$directory/exit_code"
    [ "$1" = 0 ] || "$python" -P -m launch.pipeline.tracking "$root" dvae FAILED
    exit "$1"
}

# The job starts again later, after exit code $1. SLURM calls a job COMPLETING that was ended from
# outside: a cancelled one stays ended; one whose time was up (INVALID: none is left) has saved, and
# goes on.
requeue() {
    local state
    trap '' USR2 TERM
    for _ in {1..30}; do
        state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format='%T %L') && break
        sleep 10
    done
    [ -e "$directory/cancelled" ] && state=CANCELLED
    case "$1 $state" in
        *" RUNNING "* | "75 COMPLETING INVALID") ;;
        *)
            echo "job: exit code $1; ended from outside ($state), not put back into the queue"
            "$python" -P -m launch.pipeline.tracking "$root" dvae KILLED
            exit "$1"
            ;;
    esac
    echo "job: exit code $1; back into the queue"
    scontrol requeue "$SLURM_JOB_ID" || finish "$1"
    exit "$1"
}
trap 'requeue 75' USR2 TERM

# Note this start; after too many without a newer checkpoint the job gives up.
"$python" -P -m launch.slurm.restart_limit "$directory" || finish $?

# Every node must see what the work needs.
srun --export=ALL --overlap --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 bash -c '
    for path; do
        [ -e "$path" ] && continue
        echo "error: node $(hostname) does not see $path; put it where all nodes see it: into" \
            "\"shared\" of the cluster file" >&2
        exit 2
    done' look "$root/submission.json" "$cwd" "$python"
case $? in
    0) ;;
    2) finish 2 ;;
    *) requeue 1 ;;
esac

# The work. A signal is passed on to it; it saves a checkpoint at the end of its step and leaves
# with exit code 75.
srun --export=ALL --kill-on-bad-exit=1 --wait=0 --cpus-per-task=1 \
    "$python" -P -m launch.cli.main stage "$root" dvae &
trap 'told=1; kill -USR2 $!' USR2 TERM
told=1
while ((told)); do
    told=0
    wait $!
    code=$?
done

# Bad input (2) is no reason to try again, whichever process has met it.
[ -e "$directory/refused" ] && code=2
case $code in
    0 | 2) finish "$code" ;;
    *) requeue "$code" ;;
esac
