#!/bin/sh
# Build the experts of a plan on Ray, and check the pool (docs/cluster.md). Needs `pip install 'glider-moe[ray]'`.
#
#     examples/ray_build.sh plan.yaml my-pool --address auto                      on a cluster that runs
#     examples/ray_build.sh plan.yaml my-pool --device cuda --gpus-per-job 1      options of glider pool build
#
# Without an address, and where no cluster is found, Ray starts on this machine and ends with the build. The same command
# goes on after an interruption; it ends with an error where an expert failed, and the others are in the pool.
set -eu
plan=${1:?the plan of the pool (YAML)} pool=${2:?the directory of the pool}
shift 2
glider pool build "$plan" --out "$pool" --executor ray "$@"
glider pool verify "$pool"
exec glider pool ls "$pool"
