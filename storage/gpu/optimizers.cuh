// Every update rule of optimizers/, as the arithmetic of one element of a row: the same float32 (and, where those have
// it, double) operations in the same order, so that the bits are those of the CPU. Formulas and sources: optimizers/*.py.
//
// A rule is made from its parameters (`h`, in the order that rules.py gives), has SLOTS slots as wide as the row, then
// SINGLES single values (0 or 1). For each row:
//   begin(lr, step, single): the row's rate, what depends on its step. False: the row is left as it is.
//   first(p, j): for element j of a piece. What it returns is summed over the row, as SUM says.
//   middle(lr, total, dim, single), then second(p, j): unless SUM is NO_SUM.
#pragma once
#include "lanes.cuh"

// How the values of a row's elements become one: in ascending order, or as optimizers/rowloop.py's sum_of_squares does.
enum { NO_SUM, IN_ORDER, BY_EIGHTS };

// Four elements of a row, in registers: weights, gradients, slots.
template <int SLOTS>
struct Piece {
    float w[4], g[4], s[SLOTS ? SLOTS : 1][4];
};

// As Python's max and min, which numba follows: NaN stays where it comes first.
DEVICE float larger(float a, float b) { return b > a ? b : a; }
DEVICE float smaller(float a, float b) { return b < a ? b : a; }

// base**exponent by squaring; as optimizers/rowloop.py.
DEVICE double power(double base, i64 exponent) {
    double result = 1.0, factor = base;
    for (i64 left = exponent; left > 0; left >>= 1) {
        if (left & 1) result *= factor;
        factor *= factor;
    }
    return result;
}

template <int SLOT_COUNT, int SINGLE_COUNT = 0, int HOW = NO_SUM>
struct Rule {
    static const int SLOTS = SLOT_COUNT, SINGLES = SINGLE_COUNT;
    static const int SUM = HOW;
    typedef Piece<SLOT_COUNT> P;
    float rate;
    METHOD bool begin(float lr, i64 step, float& single) {
        rate = lr;
        return true;
    }
    METHOD void middle(float lr, float total, int dim, float& single) {}
    METHOD void second(P& p, int j) {}
};

struct Sgd : Rule<0> {
    float decay;
    METHOD Sgd(const double* h) : decay((float)h[0]) {}
    METHOD float first(P& p, int j) {
        p.w[j] = p.w[j] - rate * (p.g[j] + decay * p.w[j]);
        return 0.0f;
    }
};

struct Momentum : Rule<1> {
    float keep, from_grad, from_buffer, decay;
    METHOD Momentum(const double* h) : keep((float)h[0]), decay((float)h[2]) {
        from_grad = h[1] != 0.0 ? 1.0f : 0.0f;
        from_buffer = h[1] != 0.0 ? keep : 1.0f;
    }
    METHOD float first(P& p, int j) {
        const float w = p.w[j];
        const float g = p.g[j] + decay * w;
        const float b = keep * p.s[0][j] + g;
        p.s[0][j] = b;
        p.w[j] = w - rate * (from_grad * g + from_buffer * b);
        return 0.0f;
    }
};

struct Adagrad : Rule<1> {
    float decay, eps;
    double lr_decay;
    METHOD Adagrad(const double* h) : decay((float)h[0]), eps((float)h[2]), lr_decay(h[1]) {}
    METHOD bool begin(float lr, i64 step, float& single) {
        rate = lr_decay > 0.0 ? (float)(lr / (1.0 + (step - 1) * lr_decay)) : lr;
        return true;
    }
    METHOD float first(P& p, int j) {
        const float w = p.w[j];
        const float g = p.g[j] + decay * w;
        const float m = p.s[0][j] + g * g;
        p.s[0][j] = m;
        p.w[j] = w - rate * g / (square_root(m) + eps);
        return 0.0f;
    }
};

struct AdagradDecay : Rule<1, 1> {
    float decay, floor, factor;
    double decay_rate;
    i64 decay_steps;
    METHOD AdagradDecay(const double* h)
        : decay((float)h[0]), floor((float)h[3]), factor(1.0f), decay_rate(h[2]), decay_steps((i64)h[1]) {}
    METHOD bool begin(float lr, i64 step, float& single) {
        rate = lr;
        const i64 due = (step - 1) / decay_steps;
        const i64 missing = due - (i64)single;
        discounts = missing > 0;
        if (discounts) {
            single = (float)due;
            factor = (float)power(decay_rate, missing);
        }
        return true;
    }
    METHOD float first(P& p, int j) {
        if (discounts) p.s[0][j] = larger(p.s[0][j] * factor, floor);
        const float w = p.w[j];
        const float g = p.g[j] + decay * w;
        const float a = p.s[0][j] + g * g;
        p.s[0][j] = a;
        p.w[j] = w - rate * g / square_root(a);
        return 0.0f;
    }
    bool discounts;
};

struct RowwiseAdagrad : Rule<0, 1, BY_EIGHTS> {
    float decay, eps;
    METHOD RowwiseAdagrad(const double* h) : decay((float)h[0]), eps((float)h[1]) {}
    METHOD float first(P& p, int j) {
        const float g = p.g[j] + decay * p.w[j];
        return g * g;
    }
    METHOD void middle(float lr, float total, int dim, float& single) {
        single = single + total / (float)dim;
        rate = lr / (square_root(single) + eps);
    }
    METHOD void second(P& p, int j) { p.w[j] = p.w[j] - rate * (p.g[j] + decay * p.w[j]); }
};

struct Adadelta : Rule<2> {
    float keep, add, decay, eps;
    METHOD Adadelta(const double* h)
        : keep((float)h[0]), add((float)(1.0 - h[0])), decay((float)h[1]), eps((float)h[2]) {}
    METHOD float first(P& p, int j) {
        const float w = p.w[j];
        const float g = p.g[j] + decay * w;
        const float s = keep * p.s[0][j] + add * g * g;
        const float u = p.s[1][j];
        const float delta = square_root(u + eps) / square_root(s + eps) * g;
        p.s[0][j] = s;
        p.s[1][j] = keep * u + add * delta * delta;
        p.w[j] = w - rate * delta;
        return 0.0f;
    }
};

struct Rmsprop : Rule<1> {
    float keep, add, decay, eps;
    METHOD Rmsprop(const double* h)
        : keep((float)h[0]), add((float)(1.0 - h[0])), decay((float)h[2]), eps((float)h[3]) {}
    METHOD float first(P& p, int j) {
        const float w = p.w[j];
        const float g = p.g[j] + decay * w;
        const float v = keep * p.s[0][j] + add * g * g;
        p.s[0][j] = v;
        p.w[j] = w - rate * g / (square_root(v) + eps);
        return 0.0f;
    }
};

struct RmspropMomentum : Rule<2> {
    float keep, add, momentum, decay, eps;
    METHOD RmspropMomentum(const double* h)
        : keep((float)h[0]), add((float)(1.0 - h[0])), momentum((float)h[1]), decay((float)h[2]), eps((float)h[3]) {}
    METHOD float first(P& p, int j) {
        const float w = p.w[j];
        const float g = p.g[j] + decay * w;
        const float v = keep * p.s[0][j] + add * g * g;
        const float b = momentum * p.s[1][j] + g / (square_root(v) + eps);
        p.s[0][j] = v;
        p.s[1][j] = b;
        p.w[j] = w - rate * b;
        return 0.0f;
    }
};

// What the rules with two moments and bias corrections share. h: beta1, beta2, then their own.
template <int SLOT_COUNT, int SINGLE_COUNT = 0, int HOW = NO_SUM>
struct Moments : Rule<SLOT_COUNT, SINGLE_COUNT, HOW> {
    double beta1, beta2;
    float b1, b2, c1, c2, root;
    METHOD Moments(const double* h)
        : beta1(h[0]), beta2(h[1]), b1((float)h[0]), b2((float)h[1]), c1((float)(1.0 - h[0])), c2((float)(1.0 - h[1])) {}
    METHOD bool begin(float lr, i64 step, float& single) {
        this->rate = (float)(lr * (1.0 / (1.0 - power(beta1, step))));
        root = (float)square_root(1.0 / (1.0 - power(beta2, step)));
        return true;
    }
};

struct Adam : Moments<2> {
    float decay, eps;
    METHOD Adam(const double* h) : Moments<2>(h), decay((float)h[2]), eps((float)h[3]) {}
    METHOD float first(P& p, int j) {
        const float w = p.w[j];
        const float g = p.g[j] + decay * w;
        const float m = b1 * p.s[0][j] + c1 * g;
        const float v = b2 * p.s[1][j] + c2 * g * g;
        p.s[0][j] = m;
        p.s[1][j] = v;
        p.w[j] = w - rate * m / (square_root(v) * root + eps);
        return 0.0f;
    }
};

struct Amsgrad : Moments<3> {
    float decay, eps;
    METHOD Amsgrad(const double* h) : Moments<3>(h), decay((float)h[2]), eps((float)h[3]) {}
    METHOD float first(P& p, int j) {
        const float w = p.w[j];
        const float g = p.g[j] + decay * w;
        const float m = b1 * p.s[0][j] + c1 * g;
        const float v = b2 * p.s[1][j] + c2 * g * g;
        const float x = larger(p.s[2][j], v);
        p.s[0][j] = m;
        p.s[1][j] = v;
        p.s[2][j] = x;
        p.w[j] = w - rate * m / (square_root(x) * root + eps);
        return 0.0f;
    }
};

struct AdamW : Moments<2> {
    float decay, eps, shrink;
    METHOD AdamW(const double* h) : Moments<2>(h), decay((float)h[2]), eps((float)h[3]) {}
    METHOD bool begin(float lr, i64 step, float& single) {
        shrink = 1.0f - lr * decay;
        return Moments<2>::begin(lr, step, single);
    }
    METHOD float first(P& p, int j) {
        const float g = p.g[j];
        const float m = b1 * p.s[0][j] + c1 * g;
        const float v = b2 * p.s[1][j] + c2 * g * g;
        p.s[0][j] = m;
        p.s[1][j] = v;
        p.w[j] = shrink * p.w[j] - rate * m / (square_root(v) * root + eps);
        return 0.0f;
    }
};

struct AdaBelief : Moments<2> {
    float decay, eps, shrink;
    METHOD AdaBelief(const double* h) : Moments<2>(h), decay((float)h[2]), eps((float)h[3]) {}
    METHOD bool begin(float lr, i64 step, float& single) {
        shrink = 1.0f - lr * decay;
        return Moments<2>::begin(lr, step, single);
    }
    METHOD float first(P& p, int j) {
        const float g = p.g[j];
        const float m = b1 * p.s[0][j] + c1 * g;
        const float s = b2 * p.s[1][j] + c2 * (g - m) * (g - m) + eps;
        p.s[0][j] = m;
        p.s[1][j] = s;
        p.w[j] = shrink * p.w[j] - rate * m / (square_root(s) * root + eps);
        return 0.0f;
    }
};

struct RectifiedAdam : Moments<2> {
    float decay, eps, shrink;
    double threshold;
    bool adaptive;
    METHOD RectifiedAdam(const double* h)
        : Moments<2>(h), decay((float)h[2]), eps((float)h[3]), threshold(h[4]) {}
    METHOD bool begin(float lr, i64 step, float& single) {
        const double decayed = power(beta2, step);
        const double limit = 2.0 / (1.0 - beta2) - 1.0;
        const double rho = limit - 2.0 * step * decayed / (1.0 - decayed);
        double r = 0.0;
        if (!(rho < threshold))
            r = square_root((rho - 4.0) * (rho - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * rho));
        adaptive = r > 0.0;
        rate = (float)(lr * ((adaptive ? r : 1.0) / (1.0 - power(beta1, step))));
        root = (float)square_root(1.0 / (1.0 - decayed));
        shrink = 1.0f - lr * decay;
        return true;
    }
    METHOD float first(P& p, int j) {
        const float g = p.g[j];
        p.s[0][j] = b1 * p.s[0][j] + c1 * g;
        p.s[1][j] = b2 * p.s[1][j] + c2 * g * g;
        const float move = rate * p.s[0][j];
        p.w[j] = shrink * p.w[j] - (adaptive ? move / (square_root(p.s[1][j]) * root + eps) : move);
        return 0.0f;
    }
};

struct PartialRowwiseAdam : Moments<1, 1, BY_EIGHTS> {
    float decay, eps;
    double correction2;
    METHOD PartialRowwiseAdam(const double* h)
        : Moments<1, 1, BY_EIGHTS>(h), decay((float)h[2]), eps((float)h[3]) {}
    METHOD bool begin(float lr, i64 step, float& single) {
        rate = (float)(lr * (1.0 / (1.0 - power(beta1, step))));
        correction2 = square_root(1.0 / (1.0 - power(beta2, step)));
        return true;
    }
    METHOD float first(P& p, int j) {
        const float g = p.g[j] + decay * p.w[j];
        p.s[0][j] = b1 * p.s[0][j] + c1 * g;
        return g * g;
    }
    METHOD void middle(float lr, float total, int dim, float& single) {
        single = b2 * single + c2 * (total / (float)dim);
        rate = (float)(rate / (square_root(single) * correction2 + eps));
    }
    METHOD void second(P& p, int j) { p.w[j] = p.w[j] - rate * p.s[0][j]; }
};

struct Lion : Rule<1> {
    float b1, b2, c1, c2, decay, shrink;
    METHOD Lion(const double* h)
        : b1((float)h[0]), b2((float)h[1]), c1((float)(1.0 - h[0])), c2((float)(1.0 - h[1])), decay((float)h[2]) {}
    METHOD bool begin(float lr, i64 step, float& single) {
        rate = lr;
        shrink = 1.0f - lr * decay;
        return true;
    }
    METHOD float first(P& p, int j) {
        const float g = p.g[j], m = p.s[0][j];
        const float u = b1 * m + c1 * g;
        const float direction = u > 0.0f ? 1.0f : u < 0.0f ? -1.0f : u * 0.0f;
        p.s[0][j] = b2 * m + c2 * g;
        p.w[j] = shrink * p.w[j] - rate * direction;
        return 0.0f;
    }
};

struct Ftrl : Rule<2> {
    float beta, l1, l2;
    METHOD Ftrl(const double* h) : beta((float)h[0]), l1((float)h[1]), l2((float)h[2]) {}
    METHOD bool begin(float lr, i64 step, float& single) {
        rate = lr;
        return lr != 0.0f;
    }
    METHOD float first(P& p, int j) {
        const float g = p.g[j];
        const float before = p.s[1][j];
        const float after = before + g * g;
        const float root = square_root(after);
        const float z = p.s[0][j] + (g - (root - square_root(before)) / rate * p.w[j]);
        const float scale = (beta + root) / rate + l2;
        const float shrunk = z > 0.0f ? z - l1 : z + l1;
        p.s[0][j] = z;
        p.s[1][j] = after;
        p.w[j] = (z < 0.0f ? -z : z) <= l1 || scale == 0.0f ? 0.0f : -shrunk / scale;
        return 0.0f;
    }
};

struct GroupAdam : Moments<3, 0, IN_ORDER> {
    float eps, lambda1, lambda2, lambda21, l1, l2, keep;
    METHOD GroupAdam(const double* h)
        : Moments<3, 0, IN_ORDER>(h), eps((float)h[2]), lambda1((float)h[3]), lambda2((float)h[4]), lambda21((float)h[5]) {}
    METHOD bool begin(float lr, i64 step, float& single) {
        rate = (float)(lr * (square_root(1.0 - power(beta2, step)) / (1.0 - power(beta1, step))));
        l1 = lr * lambda1;
        l2 = lr * lambda2;
        return true;
    }
    METHOD float first(P& p, int j) {
        const float g = p.g[j];
        const float m = b1 * p.s[0][j] + c1 * g;
        const float before = p.s[1][j];
        const float v = b2 * before + c2 * g * g;
        float x = p.s[2][j];
        const float moved = square_root(v) + (x == 0.0f ? eps : -square_root(before));
        x += rate * m - moved * p.w[j];
        const float u = smaller(larger(x, -l1), l1) - x;
        p.s[0][j] = m;
        p.s[1][j] = v;
        p.s[2][j] = x;
        p.w[j] = u;
        return u * u;
    }
    METHOD void middle(float lr, float total, int dim, float& single) {
        const float l21 = lr * lambda21 * square_root((float)dim);
        const float norm = square_root(total);
        keep = !(norm <= l21) ? 1.0f - l21 / norm : 0.0f;
    }
    METHOD void second(P& p, int j) {
        p.w[j] = keep * p.w[j] / (square_root(p.s[1][j]) + eps + 2.0f * l2);
    }
};

struct SparseGroupFtrl : Rule<2, 0, IN_ORDER> {
    float l1, l2, lambda21, shrinkage, keep;
    METHOD SparseGroupFtrl(const double* h)
        : l1((float)h[0]), l2((float)h[1]), lambda21((float)h[2]), shrinkage((float)h[3]) {}
    METHOD bool begin(float lr, i64 step, float& single) {
        rate = lr;
        return lr != 0.0f;
    }
    METHOD float first(P& p, int j) {
        const float g = p.g[j], w = p.w[j];
        const float before = p.s[0][j];
        const float after = before + g * g;
        const float x = p.s[1][j] +
                        (g + 2.0f * shrinkage * w - (square_root(after) - square_root(before)) / rate * w);
        const float u = smaller(larger(x, -l1), l1) - x;
        p.s[0][j] = after;
        p.s[1][j] = x;
        p.w[j] = u;
        return u * u;
    }
    METHOD void middle(float lr, float total, int dim, float& single) {
        const float l21 = lambda21 * square_root((float)dim);
        const float norm = square_root(total);
        keep = !(norm <= l21) ? 1.0f - l21 / norm : 0.0f;
    }
    METHOD void second(P& p, int j) {
        const float scale = square_root(p.s[0][j]) / rate + 2.0f * l2;
        p.w[j] = scale == 0.0f ? 0.0f : keep * p.w[j] / scale;
    }
};
