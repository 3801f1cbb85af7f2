// What happens to the rows of one table, apart from pooling and updating: find, enter, start, load, copy out, evict.
// One thread per key or row unless it says otherwise. Arrays are those of DeviceTable (table.py).
#include "initializers.cuh"

// Bits of `flags`, as storage/hot_kernels.py.
const u8 USED = 1, TOUCHED = 2, DIRTY = 4, FRESH = 16, PINNED = 32;

// Entries 0..size-1 and the two for reserved keys.
KERNEL clear_index(Entry* index, i64 size) {
    const i64 i = thread_number();
    if (i >= size + 2) return;
    index[i] = Entry{EMPTY, 0, NOWHERE};
}

// rows[i] = row of keys[i] or -1; the bits of `touch` are put on those found. missing[0] += how many were not.
KERNEL find(const Entry* index, i64 size, const i64* keys, i64 n, u8* flags, int touch, int* rows, int* missing) {
    const i64 i = thread_number();
    if (i >= n) return;
    const int row = find_row(index, size, keys[i]);
    rows[i] = row;
    if (row < 0)
        add_to(missing, 1);
    else if ((flags[row] & touch) != touch)
        flags[row] |= touch;
}

// --- a batch of keys is entered: claim, (sum up `won`), settle, then resolve ---

// at[i] = the entry of keys[i]. Of the positions that want one new row, the lowest is written into the entry; rows that
// are there already are pinned, so that making room does not take them.
KERNEL claim_entries(Entry* index, i64 size, const i64* keys, i64 n, u8* flags, i64* at) {
    const i64 i = thread_number();
    if (i >= n) return;
    at[i] = claim(index, size, keys[i]);
    const int row = index[at[i]].row - 1;
    if (row < 0)
        lower_to(&index[at[i]].place, (int)i);
    else
        flags[row] |= TOUCHED | PINNED;
}

// won[i] = 1 where position i is the one that gets the new row of its key.
KERNEL find_winners(const Entry* index, const i64* at, i64 n, int* won) {
    const i64 i = thread_number();
    if (i >= n) return;
    won[i] = index[at[i]].row == 0 && index[at[i]].place == (int)i;
}

// The k-th winner gets the k-th row from the end of free[0..free_count-1]. rank: running sum of `won`, this one included.
// fresh[k] = the winner's position, fresh_rows[k] = its row.
KERNEL settle(Entry* index, const i64* keys, const i64* at, i64 n, const int* won, const int* rank, const int* free_rows,
              i64 free_count, i64* header, u8* flags, i64* fresh, int* fresh_rows) {
    const i64 i = thread_number();
    if (i >= n || !won[i]) return;
    const int k = rank[i] - 1;
    const int row = free_rows[free_count - 1 - k];
    index[at[i]].row = row + 1;
    header[4 * (i64)row] = keys[i];
    flags[row] = USED | TOUCHED | PINNED;
    fresh[k] = i;
    fresh_rows[k] = row;
}

// Undo claim_entries where there is no room for the rows.
KERNEL disclaim(Entry* index, i64 size, const i64* at, i64 n, const int* won) {
    const i64 i = thread_number();
    if (i < n && won[i]) give_up(index, size, at[i]);
}

KERNEL resolve(const Entry* index, const i64* at, i64 n, int* rows) {
    const i64 i = thread_number();
    if (i < n) rows[i] = index[at[i]].row - 1;
}

// Enter the keys of all used rows into a cleared index.
KERNEL enter_rows(Entry* index, i64 size, const i64* header, const u8* flags, i64 high) {
    const i64 row = thread_number();
    if (row >= high || !(flags[row] & USED)) return;
    index[claim(index, size, header[4 * row])].row = (int)row + 1;
}

// Forget distinct rows, whatever their state; their numbers go to free_rows[free_count..].
KERNEL remove_rows(Entry* index, i64 size, const i64* header, u8* flags, const int* rows, i64 n, int* free_rows,
                   i64 free_count) {
    const i64 i = thread_number();
    if (i >= n) return;
    const int row = rows[i];
    give_up(index, size, entry_of(index, size, header[4 * (i64)row]));
    flags[row] = 0;
    free_rows[free_count + i] = row;
}

// --- rows come and go ---

// Begin the life of rows whose header has their key: the rest of it, slots, and the weights from the initializer. One
// thread per row and pair of values; `width` is that of weights and slots.
KERNEL start_rows(const int* rows, i64 n, i64* header, u8* flags, float* data, int stride, int dim, int width,
                  const float* state, i64 now_ms, i64 lsn, const Recipe* recipe) {
    const int pairs = (width + 1) / 2;
    const i64 i = thread_number() / pairs;
    const int pair = (int)(thread_number() % pairs);
    if (i >= n) return;
    const i64 row = rows[i];
    float* values = data + row * stride;
    if (pair == 0) {
        header[4 * row + 1] = now_ms;
        header[4 * row + 2] = 0;
        header[4 * row + 3] = lsn;
        flags[row] |= DIRTY | FRESH;
    }
    if (2 * pair < dim) initial_pair(*recipe, header[4 * row], pair, dim, values);
    for (int j = 2 * pair; j < width && j < 2 * pair + 2; ++j)
        if (j >= dim) values[j] = state[j - dim];
}

// A record of storage/record.py is 10 words of header and then the floats: version | flags << 8 | group << 16, dim, key,
// update time, update count, LSN (8 bytes each). One thread per record and word; `words` = 10 + width.

// Fill rows from records: record positions[i] goes to rows[i].
KERNEL load_rows(const int* records, const i64* positions, const int* rows, i64 n, int words, i64* header, u8* flags,
                 float* data, int stride) {
    const i64 i = thread_number() / words;
    const int word = (int)(thread_number() % words);
    if (i >= n) return;
    const i64 row = rows[i];
    const int value = records[positions[i] * words + word];
    if (word == 0 && (value >> 8 & 1)) flags[row] |= FRESH;
    if (word >= 10)
        ((int*)data)[row * stride + word - 10] = value;
    else if (word >= 2)
        ((int*)header)[8 * row + word - 2] = value;
}

KERNEL copy_records(const int* rows, i64 n, int words, const i64* header, const u8* flags, const float* data, int stride,
                    int first_word, int dim, int* records) {
    const i64 i = thread_number() / words;
    const int word = (int)(thread_number() % words);
    if (i >= n) return;
    const i64 row = rows[i];
    int value = word == 1 ? dim : first_word | (flags[row] & FRESH ? 1 << 8 : 0);
    if (word >= 10)
        value = ((const int*)data)[row * stride + word - 10];
    else if (word >= 2)
        value = ((const int*)header)[8 * row + word - 2];
    records[thread_number()] = value;
}

// out[i] = the weights of rows[i], zeros where it is -1. One thread per value.
KERNEL gather(const float* data, int stride, const int* rows, i64 n, int dim, float* out) {
    const i64 i = thread_number() / dim;
    const int j = (int)(thread_number() % dim);
    if (i >= n) return;
    out[thread_number()] = rows[i] < 0 ? 0.0f : data[(i64)rows[i] * stride + j];
}

// keys[i], counts[i] = key and update count of rows[i]; fresh[i] = 1 if it has seen no push, else 0.
KERNEL copy_headers(const i64* header, const u8* flags, const int* rows, i64 n, i64* keys, i64* counts, u8* fresh) {
    const i64 i = thread_number();
    if (i >= n) return;
    keys[i] = header[4 * (i64)rows[i]];
    counts[i] = header[4 * (i64)rows[i] + 2];
    fresh[i] = flags[rows[i]] & FRESH ? 1 : 0;
}

// --- choosing rows ---

// marks[row] = 1 for rows with flags & mask == wanted that were last written at `oldest_ms` or before.
KERNEL mark_rows(const u8* flags, const i64* header, i64 high, int mask, int wanted, i64 oldest_ms, int* marks) {
    const i64 row = thread_number();
    if (row >= high) return;
    marks[row] = (flags[row] & mask) == wanted && header[4 * row + 1] <= oldest_ms;
}

// out = the first `limit` marked rows, in ascending order. rank: running sum of marks.
KERNEL collect_rows(const int* marks, const int* rank, i64 high, i64 limit, int* out) {
    const i64 row = thread_number();
    if (row < high && marks[row] && rank[row] <= limit) out[rank[row] - 1] = (int)row;
}

// out = keys[i] where marks[i]. rank: running sum of marks.
KERNEL collect_keys(const i64* keys, const int* marks, const int* rank, i64 n, i64* out) {
    const i64 i = thread_number();
    if (i < n && marks[i]) out[rank[i] - 1] = keys[i];
}

// flags[row] = (flags[row] & ~clear) | put
KERNEL change_flags(u8* flags, const int* rows, i64 n, int clear, int put) {
    const i64 i = thread_number();
    if (i < n) flags[rows[i]] = (u8)((flags[rows[i]] & ~clear) | put);
}

KERNEL clear_bits(u8* flags, i64 high, int clear) {
    const i64 row = thread_number();
    if (row < high && (flags[row] & clear)) flags[row] &= (u8)~clear;
}

// --- CLOCK, one lap of it from `hand` on, as storage/hot_kernels.py's `evict` ---

DEVICE bool may_go(u8 state) { return (state & USED) && !(state & (DIRTY | PINNED)); }

// marks[i] = 1 where the i-th row from the hand on is one that the clock takes.
KERNEL clock_marks(const u8* flags, i64 high, i64 hand, int* marks) {
    const i64 i = thread_number();
    if (i >= high) return;
    const u8 state = flags[(hand + i) % high];
    marks[i] = may_go(state) && !(state & TOUCHED);
}

// Take the first `want` marked rows; rows that the hand passes on the way lose TOUCHED. rank: running sum of marks.
// result[0] = how many are marked; result[1] = the steps that the hand makes if that is `want` or more.
KERNEL clock_turn(u8* flags, i64 high, i64 hand, const int* marks, const int* rank, i64 want, int* victims, int* result) {
    const i64 i = thread_number();
    if (i >= high) return;
    if (i == high - 1) result[0] = rank[i];
    if (rank[i] - marks[i] >= want) return;  // the hand stopped before
    const i64 row = (hand + i) % high;
    if (marks[i]) {
        victims[rank[i] - 1] = (int)row;
        if (rank[i] == want) result[1] = (int)i + 1;
    } else if (may_go(flags[row])) {
        flags[row] &= (u8)~TOUCHED;
    }
}
