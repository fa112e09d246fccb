#define RIT_ISA avx2
#define RIT_VECTOR_BYTES 32
#include "backend.inl"
