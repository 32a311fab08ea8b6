#!/usr/bin/env bash
# Trains the runs of this folder anew, with the lowland of $PATH. Their losses are what later versions are held to, so
# run it only where a change of the trajectories is meant, and say so in the commit.
set -euo pipefail
cd "$(dirname "$0")"
common=(--task digits --limit 42 --threads 1 --device cpu --precision fp32 --lr 0.1 --batch-size 64 --out recorded)
for method in plain sam:rho=0.05 sampa:rho=0.05,lam=0.2 looksam:rho=0.05,k=2,alpha=0.2 micro-sam:rho=0.05,m=16; do
    lowland train "${common[@]}" --model mlp --method "$method" --seed 0
done
lowland train "${common[@]}" --model mlp --method esam:rho=0.05,beta=0.6,gamma=0.5 --seed 1 --noise 0.4
lowland train "${common[@]}" --model convnet --method gsam:rho=0.05,alpha=0.1 --seed 2 --budget gradients \
    --optimizer adamw --lr 0.001 --schedule cosine --label-smoothing 0.1 --clip 1.0
rm -r recorded/*/checkpoints
