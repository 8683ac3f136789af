#!/bin/bash
# Stage judge of quickstart, on gpu.
# Written by `mezzotint submit`, anew each time: change the cluster file rather than this one.
#SBATCH --job-name=quickstart/judge
#SBATCH --partition=cpu
#SBATCH --account=project-a
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=12
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --export=AWS_ACCESS_KEY_ID,AWS_SECRET_ACCESS_KEY,HTTPS_PROXY,MLFLOW_TRACKING_URI
#SBATCH --chdir=/lustre/project/mezzotint
#SBATCH --output=/lustre/project/mezzotint/runs/quickstart/judge/logs/job.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --constraint=h100

root=/lustre/project/mezzotint/runs/quickstart
directory=/lustre/project/mezzotint/runs/quickstart/judge
cwd=/lustre/project/mezzotint
python=/lustre/project/mezzotint/.venv/bin/python

# Set-up lines of the cluster file.
module load cuda/12.8
export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0

export MEZZOTINT_CACHE=/local/nvme/mezzotint-"$SLURM_JOB_USER"
export MEZZOTINT_JOB=$directory
export OMP_NUM_THREADS=12 PYTHONUNBUFFERED=1

# The job ends here, with exit code $1.
finish() {
    echo "$1" >"$directory/exit_code"
    [ "$1" = 0 ] || "$python" -P -m launch.pipeline.tracking "$root" judge FAILED
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
            "$python" -P -m launch.pipeline.tracking "$root" judge KILLED
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

# The work. A signal is passed on to it.
srun --export=ALL --kill-on-bad-exit=1 --wait=0 --cpus-per-task=12 \
    "$python" -P -m launch.cli.main stage "$root" judge &
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
