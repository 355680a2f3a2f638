"""Independent implementations of every predictor, one prompt and one prefix at a time, and prompts
to try.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm
from sklearn.linear_model import LinearRegression
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.neighbors import KNeighborsRegressor

Fit = Callable[[np.ndarray, np.ndarray], np.ndarray]

NUM_EXAMPLES, DIM = 14, 5


def prompts(
    case: str, noise_std: float = 0.5, num_prompts: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts xs (B, n, d) and ys (B, n), degenerate in the way that the case names."""
    rng = np.random.default_rng(sum(map(ord, case)))
    dim = 1 if case == "one dimension" else DIM
    xs = rng.standard_normal((num_prompts, NUM_EXAMPLES, dim))
    ws = rng.standard_normal((num_prompts, dim, 1))
    match case:
        case "duplicated rows":
            xs[:, 1] = xs[:, 0]
            xs[:, 4:8] = xs[:, [3]]
            xs[:, 9] = -xs[:, 2]
        case "collinear columns":
            xs[..., 1] = 2 * xs[..., 0]
            xs[..., 4] = xs[..., 2] - xs[..., 3]
        case "constant column":
            xs[..., 0] = 1
        case "zero row":
            xs[:, 3] = 0
        case "zero first row":
            xs[:, 0] = 0
        case "zero column":
            xs[..., 2] = 0
        case "all zero":
            xs[:] = 0
        case "small":
            xs *= 1e-6
        case "large":
            xs *= 1e6
        case "small rows among large":
            xs[:, ::2] *= 1e-3
    ys = (xs @ ws)[..., 0]
    return xs, ys + noise_std * np.abs(ys).max() * rng.standard_normal(ys.shape)


CASES = [
    "gaussian",
    "one dimension",
    "duplicated rows",
    "collinear columns",
    "constant column",
    "zero row",
    "zero first row",
    "zero column",
    "all zero",
    "small",
    "large",
    "small rows among large",
]


def at_every_prefix(fit: Fit, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Weights (B, n, d) that ``fit(X, y)`` gives for the first 0, 1, …, n−1 examples of every
    prompt.
    """
    return np.array(
        [
            [fit(x[:k], y[:k]) if k else np.zeros(x.shape[1]) for k in range(len(x))]
            for x, y in zip(xs, ys, strict=True)
        ]
    )


def least_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(x, y, rcond=None)[0]


def linear_regression(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return LinearRegression(fit_intercept=False).fit(x, y).coef_


def ridge(penalty: float) -> Fit:
    return lambda x, y: SklearnRidge(penalty, fit_intercept=False, solver="svd").fit(x, y).coef_


def ridge_by_singular_values(penalty: float) -> Fit:
    """For penalties at which scikit-learn divides rounding by next to nothing: it drops no singular
    value.
    """

    def fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        left, values, right = np.linalg.svd(x, full_matrices=False)
        kept = values > max(x.shape) * np.finfo(float).eps * values[0]
        gains = np.divide(values, values**2 + penalty, out=np.zeros_like(values), where=kept)
        return right.T @ (gains * (left.T @ y))

    return fit


def gradient_descent(step_size: float, num_steps: int, penalty: float) -> Fit:
    def fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        w = np.zeros(x.shape[1])
        for _ in range(num_steps):
            w = w - step_size * (2 * x.T @ (x @ w - y) + 2 * penalty * w)
        return w

    return fit


def one_pass_sgd(step_size: float, penalty: float) -> Fit:
    def fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        w = np.zeros(x.shape[1])
        for row, target in zip(x, y, strict=True):
            w = w - 2 * step_size * (row * (row @ w) - row * target + penalty * w)
        return w

    return fit


def iterative_newton(num_steps: int) -> Fit:
    def fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        gram = x.T @ x
        inverse = gram / max(np.linalg.norm(gram, "fro") ** 2, 1e-300)
        for _ in range(num_steps):
            inverse = 2 * inverse - inverse @ gram @ inverse
        return inverse @ (x.T @ y)

    return fit


def averaging(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.mean([row * target for row, target in zip(x, y, strict=True)], axis=0)


def discrete_mmse(pool: np.ndarray, noise_std: float) -> Fit:
    def fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        log_likelihood = norm.logpdf(y[:, None], loc=x @ pool.T, scale=noise_std).sum(0)
        return np.exp(log_likelihood - logsumexp(log_likelihood)) @ pool

    return fit


def nearest_neighbors(
    num_neighbors: int, weights: str, xs: np.ndarray, ys: np.ndarray
) -> np.ndarray:
    """scikit-learn's predictions (B, n)."""
    predictions = np.zeros_like(ys)
    for b in range(len(xs)):
        for k in range(1, xs.shape[1]):
            model = KNeighborsRegressor(min(k, num_neighbors), weights=weights, algorithm="kd_tree")
            predictions[b, k] = model.fit(xs[b, :k], ys[b, :k]).predict(xs[b, k : k + 1])[0]
    return predictions


def worst_condition(xs: np.ndarray) -> np.ndarray:
    """The largest condition number (B, n) of any prefix up to each, zero singular values left
    out.
    """
    worst = np.ones(xs.shape[:2])
    for b in range(len(xs)):
        for k in range(1, xs.shape[1]):
            values = np.linalg.svd(xs[b, :k], compute_uv=False)
            values = values[values > max(k, xs.shape[2]) * np.finfo(float).eps * values[0]]
            worst[b, k] = (
                max(worst[b, k - 1], values[0] / values[-1]) if len(values) else worst[b, k - 1]
            )
    return worst
