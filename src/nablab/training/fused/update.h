/* The optimizers of the compiled engines: each does what its namesake in torch.optim does. */
#include <float.h>

enum { SGD, RMSPROP, ADAM, ADAMW };

typedef struct {
    int64_t rule, nesterov;
    const double *learning_rate, *weight_decay, *epsilon; /* (K) each, and so the next two */
    const double *first_decay, *second_decay;             /* momentum or beta1; smoothing or beta2 */
    const double *l1, *proximal_l1;
} Optimizer;

/* The numbers of one step of one replica, computed in double and rounded once, as PyTorch does. */
typedef struct {
    int64_t rule;
    real lr, epsilon, l2;
    real b1, b2, c1, c2;     /* the two decays, and 1 minus each */
    real now, past;          /* SGD: shares of gradient and memory */
    real move, unbias, keep; /* Adam */
    real l1, shrink;         /* the L1 penalty's subgradient; and what its proximal operator takes away */
} Rule;

/* The step number `taken`, from 1; `rate` multiplies the learning rate. */
static Rule rule_of(const Optimizer *o, int64_t replica, int64_t taken, double rate) {
    const double lr = o->learning_rate[replica] * rate, decay = o->weight_decay[replica];
    const double first = o->first_decay[replica], second = o->second_decay[replica];
    const int adam = o->rule == ADAM || o->rule == ADAMW;
    return (Rule){
        .rule = o->rule, .lr = (real)lr, .epsilon = (real)o->epsilon[replica],
        .l2 = (real)(o->rule == ADAMW ? 0 : decay), .b1 = (real)first, .b2 = (real)second,
        .c1 = (real)(1 - first), .c2 = (real)(1 - second), .now = o->nesterov ? 1 : 0,
        .past = o->nesterov ? (real)first : 1, .move = adam ? (real)(lr / (1 - pow(first, (double)taken))) : 0,
        .unbias = adam ? (real)(1 / sqrt(1 - pow(second, (double)taken))) : 0,
        .keep = (real)(o->rule == ADAMW ? 1 - lr * decay : 1),
        .l1 = (real)o->l1[replica], .shrink = (real)(lr * o->proximal_l1[replica]),
    };
}

/* A memory that fades into subnormal numbers would stay there and cost a hundred cycles at every step. */
INLINE real flush(real value) {
    const real smallest = IS_DOUBLE ? (real)DBL_MIN : (real)FLT_MIN;
    return value < smallest && value > -smallest ? 0 : value;
}

/* Moves a weight towards zero by `by`, and not beyond. In this order a NaN stays one. */
INLINE real shrunk(real w, real by) {
    const real low = w + by, high = w - by; /* for a weight below 0, and for one above */
    const real negative = low > 0 ? 0 : low, positive = high < 0 ? 0 : high;
    return w < 0 ? negative : positive;
}

/* The gradient of a weight with its penalties: L2, and L1 by its subgradient. */
INLINE real penalized(const Rule u, real gradient, real w) {
    return gradient + u.l2 * w + (w > 0 ? u.l1 : w < 0 ? -u.l1 : 0);
}

/* `apply` with an L1 penalty, whose proximal operator follows the step. The step of RMSprop and Adam multiplies
 * with `by`, and so does the operator: it minimizes the same sum of a quadratic and the penalty as the step (Yun
 * et al. 2021). */
static void apply_l1(const Rule *rule, real *restrict w, real *restrict m, real *restrict v,
                     const real *restrict gradient, int64_t count) {
    const Rule u = *rule;
    if (u.rule == SGD) {
        for (int64_t p = 0; p < count; p++) {
            const real g = penalized(u, gradient[p], w[p]);
            m[p] = flush(u.b1 * m[p] + g);
            w[p] = shrunk(w[p] - u.lr * (u.now * g + u.past * m[p]), u.shrink);
        }
    } else if (u.rule == RMSPROP) {
        for (int64_t p = 0; p < count; p++) {
            const real g = penalized(u, gradient[p], w[p]);
            v[p] = flush(u.b2 * v[p] + u.c2 * (g * g));
            const real by = 1 / ((real)sqrt(v[p]) + u.epsilon);
            m[p] = flush(u.b1 * m[p] + g * by);
            w[p] = shrunk(w[p] - u.lr * m[p], u.shrink * by);
        }
    } else {
        for (int64_t p = 0; p < count; p++) {
            const real g = penalized(u, gradient[p], w[p]);
            m[p] = flush(m[p] + u.c1 * (g - m[p]));
            v[p] = flush(u.b2 * v[p] + u.c2 * (g * g));
            const real by = 1 / ((real)sqrt(v[p]) * u.unbias + u.epsilon);
            w[p] = shrunk(u.keep * w[p] - u.move * (m[p] * by), u.shrink * by);
        }
    }
}

/* Updates `count` weights and the optimizer's two memories of each. */
INLINE void apply(const Rule *rule, real *restrict w, real *restrict m, real *restrict v,
                  const real *restrict gradient, int64_t count) {
    const Rule u = *rule;
    if (u.l1 > 0 || u.shrink > 0) {
        apply_l1(rule, w, m, v, gradient, count);
    } else if (u.rule == SGD) {
        for (int64_t p = 0; p < count; p++) {
            const real g = gradient[p] + u.l2 * w[p];
            m[p] = flush(u.b1 * m[p] + g);
            w[p] -= u.lr * (u.now * g + u.past * m[p]);
        }
    } else if (u.rule == RMSPROP) {
        for (int64_t p = 0; p < count; p++) {
            const real g = gradient[p] + u.l2 * w[p];
            v[p] = flush(u.b2 * v[p] + u.c2 * (g * g));
            m[p] = flush(u.b1 * m[p] + g / ((real)sqrt(v[p]) + u.epsilon));
            w[p] -= u.lr * m[p];
        }
    } else {
        for (int64_t p = 0; p < count; p++) {
            const real g = gradient[p] + u.l2 * w[p];
            m[p] = flush(m[p] + u.c1 * (g - m[p]));
            v[p] = flush(u.b2 * v[p] + u.c2 * (g * g));
            w[p] = u.keep * w[p] - u.move * (m[p] / ((real)sqrt(v[p]) * u.unbias + u.epsilon));
        }
    }
}
