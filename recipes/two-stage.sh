#!/bin/sh
# From a raw language model (SmolLM2-135M) to an embedder, in the paper's two stages.
#
#   sh recipes/two-stage.sh small|full DATA OUT [RUN]
#
# DATA holds pairs/ (files of query, title, text), passages/ (files of title, text) and tasks/NAME/train.jsonl for the sets that the
# recipe names. OUT gets stage1 (after the pairs), fret (stage 2 on FRet alone) and gecko (stage 2 on FRet and the sets); the model
# of each is OUT/NAME/model. RUN is a run of gecko distill whose FRet rows are used, so that no teacher is needed.
# A second call goes on where the first one stopped. GECKO and STUDENT name the command and the raw model.
set -eu
if [ $# -lt 3 ]; then sed -n 's/^# \{0,1\}//p' "$0" | sed -n '1,12p' >&2; exit 2; fi
size=$1
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$3"
out=$(cd "$3" && pwd)
rows=${4:+$(cd "$4" && pwd)}
recipe=$here/two-stage-$size.toml
gecko=${GECKO:-gecko}
cd "$2" # the sources in the recipe are relative to DATA

$gecko pretrain pairs -o "$out/stage1" -c "$recipe" --backbone "${STUDENT:-smollm2}"

if [ -n "$rows" ]; then
    [ -d "$out/fret" ] || { cp -r "$rows" "$out/fret.partial" && mv "$out/fret.partial" "$out/fret"; }
    settings=$out/stage2.toml # stage 2 alone: the rest of RUN's settings stay
    sed -n '/^\[train\]/,$p' "$recipe" > "$settings"
    $gecko train "$out/fret" -c "$settings" --set "student=$out/stage1/model" --set 'mixture.sets=[]'
else
    settings=$recipe
    $gecko distill passages -o "$out/fret" -c "$recipe" --set "student=$out/stage1/model" --set 'mixture.sets=[]'
fi

[ -d "$out/gecko" ] || { cp -r "$out/fret" "$out/gecko.partial" && mv "$out/gecko.partial" "$out/gecko"; }
$gecko train "$out/gecko" -c "$settings" --set "student=$out/stage1/model"
