# What `make demo` runs: a recurrent language model on the embedded corpus, the n-gram model that it must beat, its text.
set -eu
say() { printf '\n$ %s\n' "$*"; "$@"; }
minutes="${MINUTES:-2.5}"

say rit train lm --model ngram --out runs/demo-ngram --overwrite
say rit train lm --minutes "$minutes" --out runs/demo --overwrite
say rit evaluate runs/demo runs/demo-ngram
say rit sample runs/demo --prompt "The " --length 600

cat <<'END'

The runs lie in runs/demo and runs/demo-ngram. Next, on a text of your own:

  .venv/bin/rit train lm --train FILE.txt --out runs/mine
  .venv/bin/rit sample runs/mine --prompt "Once "
  .venv/bin/rit train lm --help
END
