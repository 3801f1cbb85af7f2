// The index of a device table: open addressing with linear probing, key -> row, worked on by all threads at once.
//
// An entry is 16 bytes, so that one access gives key and row. Keys are any 64-bit value: the two values that mark an
// entry as empty or as given up are keys, too, and have an entry of their own each, behind the others. Nothing moves
// when a key goes, and what was given up is not used again before the index is built anew; so a key has one entry at
// most however many threads enter it at once, and no thread waits for another one.
#pragma once
#include "lanes.cuh"

struct alignas(16) Entry {
    i64 key;
    int row;    // row + 1; 0 = none
    int place;  // while keys are entered: the lowest position in the batch that wants the row
};

const i64 EMPTY = (i64)0x8000000000000000ull;
const i64 GONE = (i64)0x8000000000000001ull;
const int NOWHERE = 0x7FFFFFFF;  // of `place`

// The finalizer of splitmix64, as rockbed.kernels.mix64.
DEVICE u64 mix64(u64 z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// Where the search for a key begins; for EMPTY and GONE, where it ends.
DEVICE i64 home(i64 key, i64 size) {
    if (key == EMPTY || key == GONE) return size + (key == GONE);
    return (i64)multiply_high(mix64((u64)key), (u64)size);
}

// The row of a key, or -1. For kernels that do not change the index.
DEVICE int find_row(const Entry* index, i64 size, i64 key) {
    i64 at = home(key, size);
    if (at >= size) return index[at].row - 1;
    while (true) {
        const Pair entry = load_pair(index + at);
        if (entry.x == key) return (int)(entry.y & 0xFFFFFFFF) - 1;
        if (entry.x == EMPTY) return -1;
        at = at + 1 == size ? 0 : at + 1;
    }
}

// The entry of a key, entered by this thread if nobody has yet. There is room for every key of the launch.
DEVICE i64 claim(Entry* index, i64 size, i64 key) {
    i64 at = home(key, size);
    if (at >= size) return at;
    while (true) {
        i64 seen = read_now(&index[at].key);
        if (seen == EMPTY) {
            seen = compare_and_swap(&index[at].key, EMPTY, key);
            if (seen == EMPTY) return at;
        }
        if (seen == key) return at;
        at = at + 1 == size ? 0 : at + 1;
    }
}

// The entry of a key that is there.
DEVICE i64 entry_of(const Entry* index, i64 size, i64 key) {
    i64 at = home(key, size);
    while (at < size && read_now(&index[at].key) != key) at = at + 1 == size ? 0 : at + 1;
    return at;
}

// Give an entry up, so that searches go past it.
DEVICE void give_up(Entry* index, i64 size, i64 at) {
    if (at < size) index[at].key = GONE;
    index[at].row = 0;
    index[at].place = NOWHERE;
}
