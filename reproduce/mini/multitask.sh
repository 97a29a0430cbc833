#!/usr/bin/env bash
# Train the multitask LoRA of the miniature on rows of all twenty tasks, beside the pool that prepare.py laid out:
#   python reproduce/mini/prepare.py WORK --tasks TASKS --mixture && bash WORK/multitask.sh
# On a processor without bfloat16 instructions set PRECISION=float32.
set -euo pipefail
cd "$(dirname "$0")"
glider expert train mixture.jsonl --out multitask --base smollm2-135m --licence Apache-2.0 --task multitask \
    --description "Answer a question, classify a text or write one, as the prompt asks." \
    --rank 4 --alpha 1 --steps 120 --gate-steps 1 --batch-size 16 --max-tokens 200 --validation 64 --validations 4 \
    --examples 0 --seed 0 --precision "${PRECISION:-bfloat16}"
