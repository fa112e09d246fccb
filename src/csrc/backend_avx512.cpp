#define RIT_ISA avx512
#define RIT_VECTOR_BYTES 64
#include "backend.inl"
