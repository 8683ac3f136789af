#!/bin/bash
# Stage evaluate of quickstart, on gpu.
# Rewritten by every `mezzotint submit`: change the cluster file instead.
#SBATCH --job-name=quickstart/evaluate
#SBATCH --partition=cpu
#SBATCH --account=project-a
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=12
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --export=AWS_ACCESS_KEY_ID,AWS_SECRET_ACCESS_KEY,HTTPS_PROXY,MLFLOW_TRACKING_URI
#SBATCH --chdir=/lustre/project/mezzotint
#SBATCH --output=/lustre/project/mezzotint/runs/quickstart/evaluate/logs/job.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --constraint=h100

root=/lustre/project/mezzotint/runs/quickstart
directory=/lustre/project/mezzotint/runs/quickstart/evaluate
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
    [ "$1" = 0 ] || "$python" -P -m launch.pipeline.tracking "$root" evaluate FAILED
    exit "$1"
}

# The job is requeued after exit code $1. SLURM calls a job COMPLETING that it ended itself: a
# cancelled job is not requeued; a job at its time limit (time left: INVALID) has saved and is.
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
            echo "job: exit code $1; ended by SLURM ($state), not requeued"
            "$python" -P -m launch.pipeline.tracking "$root" evaluate KILLED
            exit "$1"
            ;;
    esac
    echo "job: exit code $1; requeued"
    scontrol requeue "$SLURM_JOB_ID" || finish "$1"
    exit "$1"
}
trap 'requeue 75' USR2 TERM

# Record this start; after too many without a newer checkpoint the job fails.
"$python" -P -m launch.slurm.restart_limit "$directory" || finish $?

# Every node must see the run directory, the working directory and the Python.
srun --export=ALL --overlap --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 bash -c '
    for path; do
        [ -e "$path" ] && continue
        echo "error: node $(hostname) does not see $path; move it into \"shared\" of the" \
            "cluster file, which all nodes see" >&2
        exit 2
    done' check "$root/submission.json" "$cwd" "$python"
case $? in
    0) ;;
    2) finish 2 ;;
    *) requeue 1 ;;
esac

# A signal is forwarded to the process.
srun --export=ALL --kill-on-bad-exit=1 --wait=0 --cpus-per-task=12 \
    "$python" -P -m launch.cli.main stage "$root" evaluate &
trap 'signalled=1; kill -USR2 $!' USR2 TERM
signalled=1
while ((signalled)); do
    signalled=0
    wait $!
    code=$?
done

# Bad input (2) in any of the processes: do not requeue.
[ -e "$directory/refused" ] && code=2
case $code in
    0 | 2) finish "$code" ;;
    *) requeue "$code" ;;
esac
