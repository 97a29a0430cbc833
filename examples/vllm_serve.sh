#!/bin/sh
# Serve a pool inside vLLM, by OpenAI's API at port 8000 (docs/vllm.md). Needs `pip install 'glider-moe[vllm]'`.
#
#     examples/vllm_serve.sh BASE POOL [options of vllm serve]
#     MODE=route examples/vllm_serve.sh BASE POOL --max-model-len 2048
#
# The arguments are made anew at every start, as they hold for the pool as it is now; what cannot be served ends it here.
set -eu
base=${1:?the base model that the pool was made for} pool=${2:?the directory of the pool}
shift 2
words=$(glider vllm-args "$pool" --mode "${MODE:-select}")
# shellcheck disable=SC2086 # words without a character that a shell would change
exec vllm serve "$base" $words "$@"
