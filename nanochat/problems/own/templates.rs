//! Templates: small functions under many names, with many names of arguments, for many types.
//!
//! `T` stands for each of the types; of two groups that a bar divides, the second one is held out.

// list whole: i8 i32 i64 u8 u32 u64 | i16 u16 usize
// list signed: i8 i32 i64 isize | i16 i128
// list one: n x a value number | num v
// list two: (a, b) (x, y) (m, n) (left, right) (first, second) (i, j) | (p, q) (one, other)
// list three: (a, b, c) (x, y, z) (i, j, k) (first, second, third) | (p, q, r) (u, v, w)
// list slice: numbers values items xs data | list elements
// list slice_and_one: (numbers, number) (values, value) (items, item) (xs, x) | (list, wanted) (data, n)
// list flag: flag a b value on | state p
// list flags: (a, b) (x, y) (left, right) (first, second) | (p, q) (one, other)
// list limits: (x, low, high) (n, min, max) (value, lower, upper) | (a, from, to) (number, start, end)

type T = i32;

/// Returns zero.
// types: whole
// names: zero nothing_at_all | null_value
fn zero() -> T {
    0
}

/// Returns one.
// types: whole
// names: one single_unit | unity
fn one() -> T {
    1
}

/// Returns its argument.
// types: whole
// arguments: one
// names: identity same unchanged | keep
fn identity(n: T) -> T {
    n
}

/// Returns its first argument.
// types: whole
// arguments: two
// names: left first_argument | take_left
fn left(a: T, _b: T) -> T {
    a
}

/// Returns its second argument.
// types: whole
// arguments: two
// names: right second_argument | take_right
fn right(_a: T, b: T) -> T {
    b
}

/// Returns the number after this one.
// types: whole
// arguments: one
// names: next successor plus_one | increment
// inputs: n in half
fn next(n: T) -> T {
    n + 1
}

/// Returns the number before this one.
// types: whole
// arguments: one
// names: previous predecessor minus_one | decrement
// inputs: n in 1..=127
fn previous(n: T) -> T {
    n - 1
}

/// Returns twice the number.
// types: whole
// arguments: one
// names: double twice times_two | doubled
// inputs: n in half
fn double(n: T) -> T {
    n * 2
}

/// Returns three times the number.
// types: whole
// arguments: one
// names: triple thrice times_three | tripled
// inputs: n in -42..=42
fn triple(n: T) -> T {
    n * 3
}

/// Returns ten times the number.
// types: whole
// arguments: one
// names: tenfold times_ten | multiplied_by_ten
// inputs: n in -12..=12
fn tenfold(n: T) -> T {
    n * 10
}

/// Returns half of the number, rounded towards zero.
// types: whole
// arguments: one
// names: half halve divided_by_two | halved
fn half(n: T) -> T {
    n / 2
}

/// Returns the number times itself.
// types: whole
// arguments: one
// names: square squared | power_two
// inputs: n in root
fn square(n: T) -> T {
    n * n
}

/// Returns the third power of the number.
// types: whole
// arguments: one
// names: cube cubed | power_three
// inputs: n in -5..=5
fn cube(n: T) -> T {
    n * n * n
}

/// Returns the number with its sign changed.
// types: signed
// arguments: one
// names: opposite negated negative_of | sign_changed
// inputs: n in half
fn opposite(n: T) -> T {
    -n
}

/// Returns the sum of both numbers.
// types: whole
// arguments: two
// names: plus sum_of_both total | add_up
// inputs: a in half, b in half
fn plus(a: T, b: T) -> T {
    a + b
}

/// Returns the first number minus the second one.
// types: signed
// arguments: two
// names: minus difference_of_both subtracted | less_by
// inputs: a in half, b in half
fn minus(a: T, b: T) -> T {
    a - b
}

/// Returns the product of both numbers.
// types: whole
// arguments: two
// names: times product_of_both | multiplied
// inputs: a in root, b in root
fn times(a: T, b: T) -> T {
    a * b
}

/// Returns how often the second number goes into the first one.
// types: whole
// arguments: two
// names: quotient divide | divided_by
// inputs: b in 1..=12
fn quotient(a: T, b: T) -> T {
    a / b
}

/// Returns what remains when the first number is divided by the second one.
// types: whole
// arguments: two
// names: remainder rest | modulo
// inputs: b in 1..=12
fn remainder(a: T, b: T) -> T {
    a % b
}

/// Tells whether the number is zero.
// types: whole
// arguments: one
// names: is_zero equals_zero | vanishes
// edges: 0; 1
fn is_zero(n: T) -> bool {
    n == 0
}

/// Tells whether the number is greater than zero.
// types: signed
// arguments: one
// names: is_positive above_zero | exceeds_zero
// edges: 0; 1
fn is_positive(n: T) -> bool {
    n > 0
}

/// Tells whether the number is less than zero.
// types: signed
// arguments: one
// names: is_negative below_zero_mark | under_zero
// edges: 0; -1
fn is_negative(n: T) -> bool {
    n < 0
}

/// Tells whether the number is divisible by two.
// types: whole
// arguments: one
// names: is_even even divisible_by_two | has_even_value
// inputs: n in -60..=100
fn is_even(n: T) -> bool {
    n % 2 == 0
}

/// Tells whether the number is not divisible by two.
// types: whole
// arguments: one
// names: odd not_even not_divisible_by_two | has_odd_value
// inputs: n in -60..=100
fn odd(n: T) -> bool {
    n % 2 != 0
}

/// Tells whether both numbers are the same.
// types: whole
// arguments: two
// names: equal are_equal same_number | is_same
// inputs: a in 0..=5, b in 0..=5
fn equal(a: T, b: T) -> bool {
    a == b
}

/// Tells whether the numbers are not the same.
// types: whole
// arguments: two
// names: differ are_different not_equal | is_other
// inputs: a in 0..=5, b in 0..=5
fn differ(a: T, b: T) -> bool {
    a != b
}

/// Tells whether the first number is less than the second one.
// types: whole
// arguments: two
// names: less is_less smaller_than | is_below
// inputs: a in -9..=9, b in -9..=9
// edges: (1, 1); (1, 2); (2, 1)
fn less(a: T, b: T) -> bool {
    a < b
}

/// Tells whether the first number is greater than the second one.
// types: whole
// arguments: two
// names: greater is_greater larger_than | is_above
// inputs: a in -9..=9, b in -9..=9
// edges: (1, 1); (1, 2); (2, 1)
fn greater(a: T, b: T) -> bool {
    a > b
}

/// Tells whether the first number is at most the second one.
// types: whole
// arguments: two
// names: at_most not_greater | is_within
// inputs: a in -9..=9, b in -9..=9
// edges: (1, 1); (1, 2); (2, 1)
fn at_most(a: T, b: T) -> bool {
    a <= b
}

/// Tells whether the first number is at least the second one.
// types: whole
// arguments: two
// names: at_least not_less | reaches
// inputs: a in -9..=9, b in -9..=9
// edges: (1, 1); (1, 2); (2, 1)
fn at_least(a: T, b: T) -> bool {
    a >= b
}

/// Tells whether both are true.
// arguments: flags
// names: and both | all_true
fn and(a: bool, b: bool) -> bool {
    a && b
}

/// Tells whether at least one of both is true.
// arguments: flags
// names: or either | any_true
fn or(a: bool, b: bool) -> bool {
    a || b
}

/// Tells whether exactly one of both is true.
// arguments: flags
// names: xor exactly_one | one_but_not_both
fn xor(a: bool, b: bool) -> bool {
    a != b
}

/// Tells whether neither of both is true.
// arguments: flags
// names: nor neither | none_true
fn nor(a: bool, b: bool) -> bool {
    !(a || b)
}

/// Tells whether the second one is true or the first one false.
// arguments: flags
// names: implies follows | entails
fn implies(a: bool, b: bool) -> bool {
    !a || b
}

/// Returns the other truth value.
// arguments: flag
// names: not inverted | contrary
fn not(flag: bool) -> bool {
    !flag
}

/// Returns the larger of both numbers.
// level: 1
// types: whole
// arguments: two
// names: larger max upper_of_both | bigger
// inputs: a in -99..=99, b in -99..=99
// equivalent: a >= b
fn larger(a: T, b: T) -> T {
    if a > b {
        a
    } else {
        b
    }
}

/// Returns the smaller of both numbers.
// level: 1
// types: whole
// arguments: two
// names: smaller min lower_of_both | lesser
// inputs: a in -99..=99, b in -99..=99
// equivalent: a <= b
fn smaller(a: T, b: T) -> T {
    if a < b {
        a
    } else {
        b
    }
}

/// Returns the largest of three numbers.
// level: 1
// types: whole
// arguments: three
// names: largest_of_three max3 | biggest_of_three
// inputs: a in -9..=9, b in -9..=9, c in -9..=9
// edges: (1, 2, 3); (3, 2, 1); (1, 3, 2)
fn largest_of_three(a: T, b: T, c: T) -> T {
    a.max(b).max(c)
}

/// Returns the smallest of three numbers.
// level: 1
// types: whole
// arguments: three
// names: smallest_of_three min3 | least_of_three
// inputs: a in -9..=9, b in -9..=9, c in -9..=9
// edges: (1, 2, 3); (3, 2, 1); (2, 1, 3)
fn smallest_of_three(a: T, b: T, c: T) -> T {
    a.min(b).min(c)
}

/// Returns the number without its sign.
// level: 1
// types: signed
// arguments: one
// names: magnitude absolute abs | without_sign
// inputs: n in half
// equivalent: n <= 0; n < 1
fn magnitude(n: T) -> T {
    if n < 0 {
        -n
    } else {
        n
    }
}

/// Returns 1 for a positive number, -1 for a negative one, and 0 for zero.
// level: 1
// types: signed
// arguments: one
// names: sign signum | direction
fn sign(n: T) -> T {
    n.signum()
}

/// Returns how far apart both numbers are.
// level: 1
// types: whole
// arguments: two
// names: distance gap | apart
// inputs: a in half, b in half
// equivalent: a >= b
fn distance(a: T, b: T) -> T {
    if a > b {
        a - b
    } else {
        b - a
    }
}

/// Tells whether the first number lies between the other two, or is one of them.
// level: 1
// types: whole
// arguments: limits
// names: in_range between is_inside | lies_in
// inputs: x in -9..=9, low in -5..=3, high in 2..=6
// edges: (2, 2, 4); (4, 2, 4); (3, 2, 4); (1, 2, 4); (5, 2, 4)
fn in_range(x: T, low: T, high: T) -> bool {
    low <= x && x <= high
}

/// Returns the first number, forced between the other two.
// level: 1
// types: whole
// arguments: limits
// names: clamped limit bounded | restricted
// inputs: x in -9..=9, low in -5..=2, high in 2..=6
fn clamped(x: T, low: T, high: T) -> T {
    x.clamp(low, high)
}

/// Returns the number that may be missing, or zero.
// level: 1
// types: whole
// arguments: one
// names: or_zero value_or_zero | zero_if_missing
fn or_zero(n: Option<T>) -> T {
    n.unwrap_or(0)
}

/// Tells whether a number is there.
// level: 1
// types: whole
// arguments: one
// names: is_present has_value | is_given
fn is_present(n: Option<T>) -> bool {
    n.is_some()
}

/// Returns the quotient of both numbers, or nothing if the second one is zero.
// level: 1
// types: whole
// arguments: two
// names: safe_quotient try_divide | quotient_if_any
// inputs: a in -99..=99, b in 0..=4
// edges: (7, 0); (7, 2)
fn safe_quotient(a: T, b: T) -> Option<T> {
    if b == 0 {
        None
    } else {
        Some(a / b)
    }
}

/// Returns the number if it is greater than zero, or nothing.
// level: 1
// types: signed
// arguments: one
// names: if_positive positive_only | positive_or_none
// edges: 0; 1
fn if_positive(n: T) -> Option<T> {
    if n > 0 {
        Some(n)
    } else {
        None
    }
}

/// Tells whether the first number is divisible by the second one.
// level: 1
// types: whole
// arguments: two
// names: divisible is_multiple multiple_of | can_be_divided
// inputs: a in -30..=60, b in 1..=5
fn divisible(a: T, b: T) -> bool {
    a % b == 0
}

/// Tells whether both numbers are even or both are odd.
// level: 1
// types: whole
// arguments: two
// names: same_parity equal_parity | agree_in_parity
// inputs: a in -30..=60, b in -30..=60
fn same_parity(a: T, b: T) -> bool {
    (a % 2 == 0) == (b % 2 == 0)
}

/// Returns the first number if the flag is set, else the second one.
// level: 1
// types: whole
// arguments: (flag, a, b) (condition, x, y) (first, left, right) | (choice, p, q) (on, one, other)
// names: choose select | pick
fn choose(flag: bool, a: T, b: T) -> T {
    if flag {
        a
    } else {
        b
    }
}

/// Returns the sum of the numbers.
// level: 2
// types: whole
// arguments: slice
// names: sum_all sum_of total_of | added_up
// inputs: numbers in -15..=15
fn sum_all(numbers: &[T]) -> T {
    numbers.iter().sum()
}

/// Returns the product of the numbers.
// level: 2
// types: whole
// arguments: slice
// names: product_all product_of | multiplied_up
// inputs: numbers in -3..=3 of length 0..=4
fn product_all(numbers: &[T]) -> T {
    numbers.iter().product()
}

/// Returns the number of values in the list.
// level: 2
// types: whole
// arguments: slice
// names: length size_of_list num_values | how_many
fn length(numbers: &[T]) -> usize {
    numbers.len()
}

/// Returns the largest of the numbers, if there are any.
// level: 2
// types: whole
// arguments: slice
// names: largest maximum_of max_of | biggest
fn largest(numbers: &[T]) -> Option<T> {
    numbers.iter().copied().max()
}

/// Returns the smallest of the numbers, if there are any.
// level: 2
// types: whole
// arguments: slice
// names: smallest minimum_of min_of | least
fn smallest(numbers: &[T]) -> Option<T> {
    numbers.iter().copied().min()
}

/// Returns the first of the numbers, if there are any.
// level: 2
// types: whole
// arguments: slice
// names: first_value head first_of | front
fn first_value(numbers: &[T]) -> Option<T> {
    numbers.first().copied()
}

/// Returns the last of the numbers, if there are any.
// level: 2
// types: whole
// arguments: slice
// names: last_value final_value last_of | back
fn last_value(numbers: &[T]) -> Option<T> {
    numbers.last().copied()
}

/// Tells whether the number is in the list.
// level: 2
// types: whole
// arguments: slice_and_one
// names: contains includes is_in | holds
// inputs: numbers in 0..=9, number in 0..=9
fn contains(numbers: &[T], number: T) -> bool {
    numbers.contains(&number)
}

/// Returns how often the number is in the list.
// level: 2
// types: whole
// arguments: slice_and_one
// names: occurrences count_of | times_in_list
// inputs: numbers in 0..=3, number in 0..=3
fn occurrences(numbers: &[T], number: T) -> usize {
    numbers.iter().filter(|&&other| other == number).count()
}

/// Returns how many of the numbers are greater than the other one.
// level: 2
// types: whole
// arguments: slice_and_one
// names: count_above num_greater | how_many_above
// inputs: numbers in 0..=9, number in 0..=9
fn count_above(numbers: &[T], number: T) -> usize {
    numbers.iter().filter(|&&other| other > number).count()
}

/// Returns the numbers in the opposite order.
// level: 2
// types: whole
// arguments: slice
// names: reversed backwards reverse | turned_round
fn reversed(numbers: &[T]) -> Vec<T> {
    numbers.iter().rev().copied().collect()
}

/// Returns the numbers from small to large.
// level: 2
// types: whole
// arguments: slice
// names: sorted ascending | in_order
fn sorted(numbers: &[T]) -> Vec<T> {
    let mut result = numbers.to_vec();
    result.sort();
    result
}

/// Returns each of the numbers doubled.
// level: 2
// types: whole
// arguments: slice
// names: all_doubled double_each | each_twice
// inputs: numbers in half
fn all_doubled(numbers: &[T]) -> Vec<T> {
    numbers.iter().map(|number| number * 2).collect()
}

/// Returns each of the numbers increased by one.
// level: 2
// types: whole
// arguments: slice
// names: all_increased increment_each | each_plus_one
// inputs: numbers in half
fn all_increased(numbers: &[T]) -> Vec<T> {
    numbers.iter().map(|number| number + 1).collect()
}

/// Returns the even ones of the numbers.
// level: 2
// types: whole
// arguments: slice
// names: evens even_numbers only_even | even_ones
// inputs: numbers in -9..=9
fn evens(numbers: &[T]) -> Vec<T> {
    numbers
        .iter()
        .copied()
        .filter(|number| number % 2 == 0)
        .collect()
}

/// Returns the numbers that are not zero.
// level: 2
// types: whole
// arguments: slice
// names: without_zeros non_zero | zeros_removed
// inputs: numbers in 0..=2
fn without_zeros(numbers: &[T]) -> Vec<T> {
    numbers
        .iter()
        .copied()
        .filter(|&number| number != 0)
        .collect()
}

/// Tells whether all of the numbers are zero.
// level: 2
// types: whole
// arguments: slice
// names: all_zero only_zeros | nothing_but_zeros
// inputs: numbers in 0..=1 of length 0..=3
fn all_zero(numbers: &[T]) -> bool {
    numbers.iter().all(|&number| number == 0)
}

/// Tells whether one of the numbers is zero.
// level: 2
// types: whole
// arguments: slice
// names: any_zero has_zero | contains_zero
// inputs: numbers in 0..=3
fn any_zero(numbers: &[T]) -> bool {
    numbers.iter().any(|&number| number == 0)
}

/// Tells whether no number is less than the one before it.
// level: 2
// types: whole
// arguments: slice
// names: ascends is_ascending never_falls | is_ordered
// inputs: numbers in 0..=4 of length 0..=4
fn ascends(numbers: &[T]) -> bool {
    numbers.windows(2).all(|pair| pair[0] <= pair[1])
}
