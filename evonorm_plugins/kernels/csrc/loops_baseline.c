/* For any processor: SSE2 on x86-64, NEON on arm64. */
#include "evonorm.h"

#define LOOPS loops_baseline
#include "loops.h"
