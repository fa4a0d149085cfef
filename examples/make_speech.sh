#!/usr/bin/env bash
# The recipe of examples/speech.wav: a few seconds of speech with changing prosody, spoken by espeak-ng (Debian: espeak-ng, sox).
# Pitch, rate and volume carry the affect: pleased, then a question, then let down.
set -euo pipefail
cd "$(dirname "$0")"
raw=$(mktemp --suffix=.wav)
trap 'rm -f "$raw"' EXIT
espeak-ng -v en-us+f3 -m -w "$raw" '<speak>
<prosody pitch="+35%" rate="112%" volume="loud">Oh, that is wonderful news!</prosody> <break time="350ms"/>
<prosody pitch="+15%" rate="100%">Are you really coming home tomorrow?</prosody> <break time="500ms"/>
<prosody pitch="-25%" rate="78%" volume="soft">I see. Then I was wrong about it.</prosody>
</speak>'
sox "$raw" -r 16000 -b 16 -c 1 --norm=-3 -D speech.wav pad 0.2 0.4
