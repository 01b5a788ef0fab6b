#!/bin/sh
# All that is to be known of a GPU, in one run of under ten minutes:
#
#     sh benchmarks/gpu.sh [--small] [NAME]
#
# 1. the tests of all kernels, forward and backward, against their references, and of the whole of crosstrace against the CPU
#    (on several cores where pytest-xdist is installed);
# 2. the sparse kernels against dense ones and the roofline (kernels.py);
# 3. traces of random models of the shapes of Gemma 3 270M and 1B (make_model.py, trace.py);
# 4. training steps at 18 x 1,024 and 26 x 10,080 features against dense ones (training_step.py).
#
# Writes benchmarks/results/: kernels-gpu-NAME.csv and .png, trace-gpu-NAME-*.csv, training-step-gpu-NAME.csv, and
# gpu-NAME.log with everything that was printed. A step that fails or takes too long stops nothing: what failed is said
# at the end, and is the exit status. --small runs each step at a tiny size, on the CPU too (Triton's interpreter), to see
# that the script works; its files go to a temporary folder. PYTHON names the interpreter (default: .venv/bin/python if
# there is one, else python3).
cd "$(dirname "$0")/.." || exit 1
small=
if [ "$1" = --small ]; then
    small=1
    shift
fi
name=${1:-device}
if [ -z "$PYTHON" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
results=benchmarks/results
if [ "$small" ]; then
    results=${TMPDIR:-/tmp}/crosstrace-gpu-small
    mkdir -p "$results" || exit 1
fi
log=$results/gpu-$name.log
: >"$log" || exit 1
failed=

step() { # step SECONDS TITLE COMMAND...
    limit=$1 title=$2
    shift 2
    echo "== $title" | tee -a "$log"
    begin=$(date +%s)
    timeout "$limit" "$@" >"$work/out" 2>&1
    status=$?
    grep -v '^USDT:' "$work/out" | tee -a "$log"
    echo "-- $title: $(($(date +%s) - begin)) s, exit status $status" | tee -a "$log"
    if [ $status -ne 0 ]; then failed="$failed
  $title ($status)"; fi
}

step 20 "machine" "$PYTHON" -c "
import torch, triton
print('torch', torch.__version__, 'triton', triton.__version__)
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    print(p.name, f'{p.total_memory / 2**30:.0f} GiB, {p.multi_processor_count} multiprocessors, sm_{p.major}{p.minor}')
else:
    print('no GPU')"
if [ "$small" ]; then
    step 300 "tests, a few in the interpreter" env TRITON_INTERPRET=1 "$PYTHON" -m pytest -q -p no:cacheprovider \
        -k "triton and (L3P5 or L1P1 or L3P9) and not bfloat16 and not float16" \
        tests/kernels/test_decoding.py tests/kernels/backward
    step 120 "kernels" "$PYTHON" benchmarks/kernels.py --size tiny --repeats 1 --threads 1 --name "gpu-$name" --results "$results"
    step 60 "model, tiny" "$PYTHON" benchmarks/make_model.py "$work/tiny" --shape tiny --features 128 --active 8
    step 120 "trace, tiny" "$PYTHON" benchmarks/trace.py "$work/tiny" --tokens 8 --nodes 64 --repeats 1
    step 120 "training steps" "$PYTHON" benchmarks/training_step.py --small --threads 1 --repeats 1 --moments bfloat16 \
        --out "$results/training-step-gpu-$name.csv"
else
    several=
    if "$PYTHON" -c "import xdist" 2>/dev/null; then several="-n 8"; fi
    step 180 "tests" "$PYTHON" -m pytest -q -p no:cacheprovider $several tests/kernels tests/tracer/test_gpu.py
    step 100 "training steps" "$PYTHON" benchmarks/training_step.py --size block-270m block-1b 270m 1b --repeats 5 \
        --moments bfloat16 --out "$results/training-step-gpu-$name.csv"
    step 30 "model, 270m" "$PYTHON" benchmarks/make_model.py "$work/270m" --shape 270m --features 2048 --active 35
    step 50 "trace, 270m" "$PYTHON" benchmarks/trace.py "$work/270m" --tokens 16 64 --nodes 512 --repeats 2 \
        --csv "trace-gpu-$name-270m.csv"
    rm -rf "$work/270m"
    step 60 "model, 1b" "$PYTHON" benchmarks/make_model.py "$work/1b" --shape 1b --features 10080 --active 100 --distinct 64
    step 60 "trace, 1b" "$PYTHON" benchmarks/trace.py "$work/1b" --tokens 64 --nodes 512 --repeats 2 \
        --csv "trace-gpu-$name-1b.csv"
    rm -rf "$work/1b"
    # last, as the longest: what came before is written by now
    step 120 "kernels" "$PYTHON" benchmarks/kernels.py --size 1b --repeats 3 --name "gpu-$name" --results "$results"
fi
if [ "$failed" ]; then
    echo "failed:$failed" | tee -a "$log"
    exit 1
fi
echo "all steps done" | tee -a "$log"
