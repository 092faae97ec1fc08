#include "droppeft/kernels/cuda/register.cu"
