#define RIT_ISA avx512bf16
#define RIT_VECTOR_BYTES 64
#include "backend.inl"
