#define RIT_ISA baseline
#define RIT_VECTOR_BYTES 16
#include "backend.inl"
