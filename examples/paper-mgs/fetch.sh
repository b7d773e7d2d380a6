#!/bin/bash
# Gets the data of both configurations into a folder, and model and reward model into the Hugging Face cache.
#
#   export COUNTERPOINT_DATA=data/mgs MODEL=Qwen/Qwen2.5-7B
#   bash examples/paper-mgs/fetch.sh
#
# Llama-3.1-8B is gated: accept its licence on the hub and run `hf auth login` first.
set -euo pipefail
: "${COUNTERPOINT_DATA:?set it to the folder that is to hold the data}"
mkdir -p "$COUNTERPOINT_DATA"

# math: MATH levels 3 to 5 with MATH-500 as its test split
hf download hkust-nlp/SimpleRL-Zoo-Data --repo-type dataset --include 'simplelr_qwen_level3to5/*' --local-dir "$COUNTERPOINT_DATA"

# chat: WildChat-IF, which the authors keep in the repository of their code
code=$(mktemp -d)
git clone --quiet --depth 1 https://github.com/StringNLPLAB/MGS "$code"
find "$code" -name 'wildchat-if_*.parquet' -exec cp {} "$COUNTERPOINT_DATA" \;
rm -rf "$code"

# instructions: read from the hub by its name, so this only fills the cache
hf download nvidia/Llama-Nemotron-Post-Training-Dataset --repo-type dataset --include 'RL/instruction_following/*'

hf download "${MODEL:-Qwen/Qwen2.5-7B}"
hf download "${REWARD_MODEL:-Skywork/Skywork-Reward-V2-Llama-3.1-8B}"
for file in simplelr_qwen_level3to5/train.parquet wildchat-if_train.parquet wildchat-if_val.parquet; do
  [ -s "$COUNTERPOINT_DATA/$file" ] || { echo "$COUNTERPOINT_DATA/$file did not come" >&2; exit 1; }
done
