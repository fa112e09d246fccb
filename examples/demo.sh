# What `make demo` runs: a recurrent language model on the embedded corpus, the n-gram model that it must beat, its text.
set -eu
run() {
    printf '\n$ %s\n' "$1"
    eval "$1"
}

run 'rit train lm --model ngram --out runs/demo-ngram --overwrite'
run "rit train lm --minutes ${MINUTES:-2.5} --dropout 0.2 --out runs/demo --overwrite"
run 'rit evaluate runs/demo runs/demo-ngram'
run 'rit sample runs/demo --prompt "The " --length 600'

cat <<'END'

The runs lie in runs/demo and runs/demo-ngram. Next, on a text of your own:

  .venv/bin/rit train lm --train FILE.txt --out runs/mine
  .venv/bin/rit sample runs/mine --prompt "Once "
  .venv/bin/rit train lm --help
END
