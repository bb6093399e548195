#!/usr/bin/env bash
# Baseline, W8 and W4 variants and (RUN_QAT=1) quantization-aware training of a YOLOv10 checkpoint: exported, cleaned, smoke
# tested, evaluated on COCO, summed up in $RUN_ROOT/summary.md. All of it is one `fewbits detect sweep`; its exit code is ours.
#
# RUN_ID            name of the run: the time, YYYY-MM-DD_HH-MM-SS
# RUN_ROOT          its folder: tmp/yolov10m_brevitas_w4a8_w4a16/$RUN_ID
# CHECKPOINT        weights: models/yolo10/checkpoints/yolov10m.pt where that is a file, else the packaged yolov10n
# COCO_ROOT         datasets/coco2017/source-data
# CALIB_LIST        datasets/quantize-calib/quant100.txt where that is a file, else images drawn from the train split
# IMG_SIZE          640
# MAX_EVAL_IMAGES   100 (0: all)
# SCHEMES           W8A16,W8A8,W4A16,W4A8
# RUN_QAT, QAT_MODE 0, w4a8
# PYTHON            .venv/bin/python where that is there, else python3
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

RUN_ID=${RUN_ID:-$(date +%Y-%m-%d_%H-%M-%S)}
RUN_ROOT=${RUN_ROOT:-tmp/yolov10m_brevitas_w4a8_w4a16/$RUN_ID}
COCO_ROOT=${COCO_ROOT:-datasets/coco2017/source-data}
IMG_SIZE=${IMG_SIZE:-640}
MAX_EVAL_IMAGES=${MAX_EVAL_IMAGES:-100}
SCHEMES=${SCHEMES:-W8A16,W8A8,W4A16,W4A8}
RUN_QAT=${RUN_QAT:-0}
QAT_MODE=${QAT_MODE:-w4a8}
DEFAULT_CHECKPOINT=models/yolo10/checkpoints/yolov10m.pt
DEFAULT_CALIB_LIST=datasets/quantize-calib/quant100.txt

if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; fi
fi
# modes are written in small letters in the runbook, schemes in capitals
if [[ $QAT_MODE =~ ^w([2-8])a(8|16)$ ]]; then QAT_MODE=W${BASH_REMATCH[1]}A${BASH_REMATCH[2]}; fi

case $RUN_QAT in
  0 | 1) ;;
  *)
    echo "RUN_QAT is '$RUN_QAT': set it to 0 or 1" >&2
    exit 2
    ;;
esac

mkdir -p "$RUN_ROOT/logs"

main() {
  local calibration=() training=()
  if [[ -z ${CHECKPOINT:-} ]]; then
    CHECKPOINT=$DEFAULT_CHECKPOINT
    if [[ ! -f $CHECKPOINT ]]; then
      CHECKPOINT=yolov10n
      echo "there is no $DEFAULT_CHECKPOINT: the packaged yolov10n is used (CHECKPOINT=FILE names another)"
    fi
  fi
  if [[ -n ${CALIB_LIST:-} ]]; then
    calibration=(--calib-list "$CALIB_LIST")
  elif [[ -f $DEFAULT_CALIB_LIST ]]; then
    calibration=(--calib-list "$DEFAULT_CALIB_LIST")
  else
    echo "there is no $DEFAULT_CALIB_LIST: calibration images are drawn from the train split (CALIB_LIST=FILE names a list)"
  fi
  if [[ $RUN_QAT == 1 ]]; then training=(--qat --qat-mode "$QAT_MODE"); fi
  # an empty array is an unbound variable in bash before 4.4
  "$PYTHON" -m fewbits detect sweep --weights "$CHECKPOINT" --coco "$COCO_ROOT" --schemes "$SCHEMES" --imgsz "$IMG_SIZE" \
    --max-images "$MAX_EVAL_IMAGES" --out-dir "$RUN_ROOT" ${calibration[@]+"${calibration[@]}"} ${training[@]+"${training[@]}"}
}

# tee keeps reading until the sweep has said its last word, also when it is interrupted; pipefail passes the exit code on
main 2>&1 | tee -a -i "$RUN_ROOT/logs/runner.log"
