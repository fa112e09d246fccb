// Codes, levels and forests that are wrong: refused with std::invalid_argument, or harmless.
#pragma once
#include "recorded.h"

// Runs `task` in a process of its own; "" if that ends well, else how it ended and what it wrote to stderr.
std::string in_child(void (*task)(void* context), void* context);

// Mistakes that must be refused, one by one. Returns how many were not; says which.
int refusals();

// Random changes to the integers of a program, or of a structure. What is accepted is run, in a process of its own, so that
// a sanitizer or a forbidden page ends only that. Returns how many runs ended so; says how.
int mutations(const std::vector<Recorded>& programs, int count, uint64_t seed);
