"""INT8 calibration of ONNX models: observe, choose ranges, place Q/DQ, judge the result."""
