//! Level 1: a branch, a comparison, a value that may be missing.

/// Returns what it costs to send an order: nothing from 50 on, 3 from 20 on, else 5.
// inputs: total in 0..=100
// edges: 49; 50; 19; 20
fn shipping_cost(total: u32) -> u32 {
    if total >= 50 {
        0
    } else if total >= 20 {
        3
    } else {
        5
    }
}

/// Returns `weekend` for the days 6 and 7 of a week, `weekday` for the days 1 to 5, `no day` for others.
// inputs: day in 0..=9
// edges: 1; 5; 6; 7; 8; 0
fn kind_of_day(day: u8) -> &'static str {
    match day {
        1..=5 => "weekday",
        6 | 7 => "weekend",
        _ => "no day",
    }
}

/// Returns the grade for so many points: A from 90 on, B from 75 on, C from 50 on, else F.
// inputs: points in 0..=100
// edges: 90; 89; 75; 74; 50; 49
fn grade(points: u8) -> char {
    if points >= 90 {
        'A'
    } else if points >= 75 {
        'B'
    } else if points >= 50 {
        'C'
    } else {
        'F'
    }
}

/// Returns the first character of a text, if it has one.
fn first_character(text: &str) -> Option<char> {
    text.chars().next()
}

/// Returns the last character of a text, or a question mark for a text without any.
fn last_character_or_mark(text: &str) -> char {
    text.chars().last().unwrap_or('?')
}

/// Returns a percentage, forced into the range of 0 to 100.
// inputs: percent in -200..=300
// edges: 100; 101; 99; -1
fn proper_percent(percent: i32) -> i32 {
    percent.clamp(0, 100)
}

/// Returns the opposite of one of the directions `N`, `E`, `S` and `W`; other letters have none.
// inputs: direction in one of "N" "E" "S" "W" "X" "n"
fn opposite_direction(direction: char) -> Option<char> {
    match direction {
        'N' => Some('S'),
        'S' => Some('N'),
        'E' => Some('W'),
        'W' => Some('E'),
        _ => None,
    }
}

/// Tells whether a character is one of the brackets that open: round, square or curly.
// inputs: symbol in one of "(" ")" "[" "]" "{" "}" "<" "a"
fn opens_bracket(symbol: char) -> bool {
    matches!(symbol, '(' | '[' | '{')
}

/// Returns what a traffic light shows next: `green` after `red`, `yellow` after `green`, else `red`.
// inputs: light in one of "red" "green" "yellow" "off"
fn next_light(light: &str) -> &'static str {
    match light {
        "red" => "green",
        "green" => "yellow",
        _ => "red",
    }
}

/// Returns a count with its noun, which gets an `s` unless there is exactly one.
// inputs: count in 0..=12, noun in one of "cat" "book" "hour"
// edges: (1, "cat"); (0, "book")
fn with_plural(count: u32, noun: &str) -> String {
    if count == 1 {
        format!("1 {noun}")
    } else {
        format!("{count} {noun}s")
    }
}

/// Returns the price of a ticket: 0 below the age of 6, 4 below 18 and from 65 on, else 9.
// inputs: age in 0..=100
// edges: 5; 6; 17; 18; 64; 65
// equivalent: 5..=17
fn ticket_price(age: u8) -> u32 {
    match age {
        0..=5 => 0,
        6..=17 => 4,
        65.. => 4,
        _ => 9,
    }
}

/// Returns the value of a hexadecimal digit, if the character is one.
// inputs: digit in one of "0" "7" "9" "a" "F" "g" "x" "-"
fn hex_value(digit: char) -> Option<u32> {
    digit.to_digit(16)
}

/// Returns half of an even number, and nothing for an odd one.
fn half_if_even(n: i32) -> Option<i32> {
    if n % 2 == 0 {
        Some(n / 2)
    } else {
        None
    }
}

/// Returns half of an even number, and one more than three times an odd one.
// inputs: n in 0..=100000
fn hailstone_step(n: u64) -> u64 {
    if n % 2 == 0 {
        n / 2
    } else {
        3 * n + 1
    }
}

/// Returns the sum of two numbers if both are there.
// inputs: a in half, b in half
// edges: (Some(3), Some(4)); (Some(3), None); (None, Some(4)); (None, None)
fn sum_if_both(a: Option<i32>, b: Option<i32>) -> Option<i32> {
    Some(a? + b?)
}

/// Returns the preferred name if there is one, else the full name.
fn name_to_show(preferred: Option<String>, full: String) -> String {
    preferred.unwrap_or(full)
}

/// Returns the longer of two texts in bytes, the first one if they are equally long.
// edges: ("ab", "cd"); ("a", "bc"); ("bcd", "a")
fn longer_text<'a>(first: &'a str, second: &'a str) -> &'a str {
    if second.len() > first.len() {
        second
    } else {
        first
    }
}

/// Returns the quarter of the plane in which a point lies, 1 to 4 counterclockwise, or 0 on an axis.
// edges: (3, 5); (-3, 5); (-3, -5); (3, -5); (0, 5); (3, 0); (1, 1); (-1, 1); (-1, -1); (1, -1)
// equivalent: y >= 0; x >= 0; x <= 0; x < 1
fn quarter_of_plane(x: i32, y: i32) -> u8 {
    if x == 0 || y == 0 {
        0
    } else if y > 0 {
        if x > 0 {
            1
        } else {
            2
        }
    } else if x < 0 {
        3
    } else {
        4
    }
}

/// Returns a heading of 0 to 359 degrees after a quarter turn to the left.
// inputs: heading in 0..=359
// edges: 0; 90; 89; 359
fn turned_left(heading: u32) -> u32 {
    if heading < 90 {
        heading + 270
    } else {
        heading - 90
    }
}

/// Returns the hour of 0 to 23 as a clock with twelve hours shows it, from 1 to 12.
// inputs: hour in 0..=23
// edges: 0; 1; 12; 13; 23
fn hour_on_dial(hour: u8) -> u8 {
    match hour % 12 {
        0 => 12,
        rest => rest,
    }
}

/// Returns a time of day in the form `07:05`: two digits each, with a colon between.
// inputs: hours in 0..=23, minutes in 0..=59
fn clock_text(hours: u8, minutes: u8) -> String {
    format!("{hours:02}:{minutes:02}")
}

/// Returns a temperature in degrees Fahrenheit, rounded towards zero before 32 is added.
// inputs: celsius in -100..=100
fn fahrenheit(celsius: i32) -> i32 {
    celsius * 9 / 5 + 32
}

/// Returns `below`, `above` or `level`, according to the sign of an altitude.
// edges: 0; 1; -1
fn altitude_word(altitude: i32) -> &'static str {
    if altitude < 0 {
        "below"
    } else if altitude > 0 {
        "above"
    } else {
        "level"
    }
}

/// Returns what is left to pay after a discount of 10 for members, never less than nothing.
// inputs: price in 0..=30
// edges: (10, true); (9, true); (9, false)
fn member_price(price: u32, is_member: bool) -> u32 {
    if is_member {
        price.saturating_sub(10)
    } else {
        price
    }
}

/// Returns true for `on` or `yes`, false for `off` or `no`, and nothing for other words.
// inputs: word in one of "on" "yes" "off" "no" "maybe" "" "ON"
fn parse_switch(word: &str) -> Option<bool> {
    match word {
        "on" | "yes" => Some(true),
        "off" | "no" => Some(false),
        _ => None,
    }
}

/// Returns the number that a text spells in decimal digits, 0 if it spells none.
// inputs: text in one of "{-999..=999}" "{0..=99}kg" "x{1..=9}" "" "+{1..=9}"
fn number_or_zero(text: &str) -> i32 {
    text.parse().unwrap_or(0)
}

/// Returns the item at a place counted from zero, if the list is that long.
// inputs: place in 0..=9
fn item_at(items: &[i32], place: usize) -> Option<i32> {
    items.get(place).copied()
}

/// Returns the number that is neither the smallest nor the largest of three.
// inputs: a in -9..=9, b in -9..=9, c in -9..=9
// edges: (1, 2, 3); (2, 1, 3); (3, 1, 2); (1, 3, 2); (2, 3, 1); (3, 2, 1)
// edges: (2, 2, 1); (1, 2, 2); (2, 1, 2); (2, 1, 1); (1, 1, 2)
// equivalent: b >= c; a >= c
fn middle_of_three(a: i32, b: i32, c: i32) -> i32 {
    if (a > b) == (b > c) {
        b
    } else if (a > b) == (a > c) {
        c
    } else {
        a
    }
}

/// Tells whether three numbers ascend, none of them equal to the next.
// inputs: a in -3..=3, b in -3..=3, c in -3..=3
// edges: (1, 2, 3); (1, 1, 2); (1, 2, 2); (-3, 0, 3)
fn ascend(a: i8, b: i8, c: i8) -> bool {
    a < b && b < c
}

/// Tells whether no two of three letters are the same.
// inputs: a in one of "x" "y" "z", b in one of "x" "y" "z", c in one of "x" "y" "z"
fn all_different(a: char, b: char, c: char) -> bool {
    a != b && b != c && a != c
}

/// Tells whether two stretches of road, each given by its first and last milestone, share a milestone.
// inputs: one in sorted 0..=12, other in sorted 0..=12
// edges: ((1, 4), (4, 6)); ((5, 9), (1, 5)); ((1, 3), (4, 6)); ((4, 6), (1, 3))
fn stretches_meet(one: (u32, u32), other: (u32, u32)) -> bool {
    one.0 <= other.1 && other.0 <= one.1
}

/// Tells whether a point lies on a chessboard whose columns and rows are numbered from 0 to 7.
// inputs: column in -2..=9, row in -2..=9
// edges: (0, 0); (7, 7); (8, 7); (7, 8); (-1, 0); (0, -1)
fn is_on_board(column: i32, row: i32) -> bool {
    (0..8).contains(&column) && (0..8).contains(&row)
}

/// Returns how many steps along rows and columns lead from the origin to a point.
// inputs: x in -1000..=1000, y in -1000..=1000
fn steps_to(x: i32, y: i32) -> i32 {
    x.abs() + y.abs()
}

/// Tells whether two words are equal when capital and small ASCII letters count as the same.
// edges: ("Rust", "rUST"); ("rust", "rest"); ("Trust", "rust")
fn same_word(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

/// Returns a user's name without the sign `@` before it, if it has one.
// inputs: name in one of "@ada" "ada" "@@ada" "" "@"
fn without_at_sign(name: &str) -> &str {
    name.strip_prefix('@').unwrap_or(name)
}

/// Returns what follows the last dot of a file's name, if there is a dot.
// inputs: name in one of "notes.txt" "archive.tar.gz" "README" "" ".hidden" "end."
fn extension(name: &str) -> Option<&str> {
    name.rsplit_once('.').map(|(_, after)| after)
}

/// Returns how many boxes are filled and how many pieces remain, nothing if a box holds no piece.
// inputs: pieces in 0..=100, per_box in 0..=12
// edges: (7, 0); (7, 2)
fn boxes_and_rest(pieces: u32, per_box: u32) -> Option<(u32, u32)> {
    if per_box == 0 {
        None
    } else {
        Some((pieces / per_box, pieces % per_box))
    }
}

/// Returns which side has won a match: `home`, `away` or `draw`.
// inputs: home in 0..=4, away in 0..=4
// edges: (1, 1); (2, 1); (1, 2)
fn winning_side(home: u8, away: u8) -> String {
    if home > away {
        "home".to_string()
    } else if away > home {
        "away".to_string()
    } else {
        "draw".to_string()
    }
}

/// Tells whether a rook on one square attacks another square of an empty board; never its own.
// inputs: rook in 0..=3, square in 0..=3
// edges: ((1, 2), (1, 0)); ((1, 2), (3, 2)); ((1, 2), (1, 2)); ((1, 2), (3, 0))
fn rook_attacks(rook: (u8, u8), square: (u8, u8)) -> bool {
    (rook.0 == square.0) != (rook.1 == square.1)
}

/// Returns the number of days of a month of a year that is no leap year, if there is such a month.
// inputs: month in 0..=14
// edges: 1; 2; 4; 12; 13; 0
fn days_in_month(month: u8) -> Option<u8> {
    match month {
        2 => Some(28),
        4 | 6 | 9 | 11 => Some(30),
        1..=12 => Some(31),
        _ => None,
    }
}

/// Returns the quotient, or an error that reads `division by zero`.
// inputs: dividend in -100..=100, divisor in -5..=5
// edges: (1, 0); (7, -2)
fn quotient_or_error(dividend: i32, divisor: i32) -> Result<i32, String> {
    if divisor == 0 {
        Err("division by zero".to_string())
    } else {
        Ok(dividend / divisor)
    }
}

/// Returns the fare for a distance: 3 for the first two kilometres, 1 for each further one.
// inputs: kilometres in 0..=30
// edges: 0; 1; 2; 3; 4
// equivalent: kilometres < 2; kilometres <= 1
fn taxi_fare(kilometres: u32) -> u32 {
    if kilometres <= 2 {
        3
    } else {
        kilometres + 1
    }
}

/// Returns the number one nearer to a goal, or the number itself if it is the goal.
// inputs: from in -9..=9, goal in -9..=9
// edges: (3, 3); (3, 4); (4, 3)
fn one_step_towards(from: i64, goal: i64) -> i64 {
    if from < goal {
        from + 1
    } else if from > goal {
        from - 1
    } else {
        from
    }
}

/// Returns a text in square brackets, an empty one as it is.
// inputs: text in words
fn bracketed(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("[{text}]")
    }
}

/// Tells whether a year begins a century or ends one: its number ends in 00 or in 99.
// inputs: year in 1000..=2200
// edges: 1900; 1999; 2000; 2001; 1950; 2099
fn is_turn_of_century(year: u32) -> bool {
    year % 100 == 0 || year % 100 == 99
}

/// Returns the older of two ages that may be unknown; an unknown one counts for nothing.
// inputs: one in 0..=99, other in 0..=99
// edges: (Some(3), None); (None, Some(3)); (None, None); (Some(3), Some(4))
fn older_age(one: Option<u8>, other: Option<u8>) -> Option<u8> {
    one.max(other)
}

/// Returns the level of a lift after a step up or down, which stays within the levels 0 and 5.
// inputs: level in 0..=5
// edges: (0, true); (0, false); (5, true); (5, false)
fn lift_level(level: u8, up: bool) -> u8 {
    if up {
        (level + 1).min(5)
    } else {
        level.saturating_sub(1)
    }
}
