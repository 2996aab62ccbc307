"""Fit the polynomials of csrc/maths.h and pysamp/reference.py: log, sin, cos, exp by + and × alone.

Chebyshev fits in 40 digits, rounded to the working precision; C++ has them as hexadecimal literals,
Python as the decimals of the same numbers. Prints coefficients (highest power first) and the largest
error on a dense grid.

    python docs/polynomials.py
"""

from mpmath import chebyfit, cos, exp, fabs, linspace, log, log1p, mp, mpf, pi, polyval, sin, sqrt

mp.dps = 40


def log_tail(f):
    """(log(1+f) − f + f²/2) / f³: what is left of the logarithm after its first two terms."""
    f = mpf(f)
    if fabs(f) < mpf("1e-8"):
        return mpf(1) / 3 - f / 4 + f * f / 5
    return (log1p(f) - f + f * f / 2) / f**3


def atanh_tail(z):
    """(log((1+s)/(1−s)) − 2s) / s³ with z = s²: the odd series that follows 2s."""
    z = mpf(z)
    if z < mpf("1e-16"):
        return mpf(2) / 3 + 2 * z / 5
    s = sqrt(z)
    return (log((1 + s) / (1 - s)) - 2 * s) / s**3


def sin_quarter(z):
    """sin(π y / 2) / y with z = y²."""
    y = sqrt(mpf(z))
    return pi / 2 if y < mpf("1e-12") else sin(pi * y / 2) / y


def cos_quarter(z):
    """cos(π y / 2) with z = y²."""
    return cos(pi * sqrt(mpf(z)) / 2)


def report(name, function, interval, n_coefficients, digits):
    coefficients = chebyfit(function, interval, n_coefficients)
    rounded = [float(c) for c in coefficients]
    if digits == 24:
        import struct

        rounded = [struct.unpack("f", struct.pack("f", c))[0] for c in rounded]
    grid = linspace(interval[0], interval[1], 2001)
    error = max(fabs(polyval([mpf(c) for c in rounded], z) - function(z)) for z in grid)
    print(f"{name}: largest error {float(error):.2e}")
    for c in rounded:
        print(f"    {c.hex()}  # {c:.17g}")


if __name__ == "__main__":
    low, high = sqrt(mpf(1) / 2) - 1, sqrt(mpf(2)) - 1
    report("LOG float32, in f", log_tail, [low, high], 8, 24)
    report("LOG float64, in s²", atanh_tail, [mpf(0), mpf("0.02944")], 7, 53)
    report("SIN float32, in y²", sin_quarter, [mpf(0), mpf(1)], 5, 24)
    report("COS float32, in y²", cos_quarter, [mpf(0), mpf(1)], 6, 24)
    report("SIN float64, in y²", sin_quarter, [mpf(0), mpf(1)], 9, 53)
    report("COS float64, in y²", cos_quarter, [mpf(0), mpf(1)], 10, 53)
    half = log(mpf(2)) / 2 + mpf("1e-6")
    report("EXP float32, in r", exp, [-half, half], 7, 24)
    report("EXP float64, in r", exp, [-half, half], 13, 53)
