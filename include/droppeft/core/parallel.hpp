#pragma once

#include <ATen/Parallel.h>

// at::parallel_for is a template of the including program, which runs one thread there unless that
// program is compiled with OpenMP: right results, but slower than they need be. The CMake target
// brings OpenMP; this is for those who include the headers alone.
#if !defined(_OPENMP) && !defined(DROPPEFT_SERIAL)
#pragma message( \
    "droppeft runs its loops in one thread here: compile all of the program with -fopenmp, or define DROPPEFT_SERIAL if one is meant")
#endif
