//! Level 0: constants, arguments given back, one operator or one call.

/// Returns the number of days in a week.
fn days_in_week() -> u32 {
    7
}

/// Returns the character that ends a line.
fn line_end() -> char {
    '\n'
}

/// Returns the word `hello`.
fn greeting() -> &'static str {
    "hello"
}

/// Returns no number.
fn nothing() -> Option<i32> {
    None
}

/// Returns a list without a byte in it.
fn no_bytes() -> Vec<u8> {
    Vec::new()
}

/// Returns the text as it is.
// family: identity
fn same_text(text: &str) -> &str {
    text
}

/// Returns the character on the left, whatever is on the right.
// family: left
fn keep_left(left: char, _right: char) -> char {
    left
}

/// Returns the number of seconds in so many minutes.
// inputs: minutes in 0..=1000000
fn minutes_to_seconds(minutes: u32) -> u32 {
    minutes * 60
}

/// Returns how many eggs there are in so many dozens.
// inputs: dozens in 0..=100000
fn eggs_in_dozens(dozens: u64) -> u64 {
    dozens * 12
}

/// Returns how many sides so many cubes have together.
// inputs: cubes in 0..=9000
fn sides_of_cubes(cubes: u16) -> u16 {
    cubes * 6
}

/// Returns how many whole weeks fit into so many days.
fn full_weeks(days: u32) -> u32 {
    days / 7
}

/// Returns how many days are left after the last whole week.
fn days_after_weeks(days: u32) -> u32 {
    days % 7
}

/// Returns the last decimal digit of a number.
fn last_digit(n: u64) -> u64 {
    n % 10
}

/// Returns a number without its last decimal digit, 0 if there is but one.
fn drop_last_digit(n: u64) -> u64 {
    n / 10
}

/// Returns the share that remains when so many percent are used.
// inputs: used in 0..=100
fn percent_left(used: u8) -> u8 {
    100 - used
}

/// Returns the age that somebody born in one year reaches in another.
// family: minus
// inputs: born in 1900..=2000, year in 2000..=2100
fn age_in(year: u16, born: u16) -> u16 {
    year - born
}

/// Returns the number of tiles on a floor of so many rows and columns.
// family: times
// inputs: rows in 0..=999, columns in 0..=999
fn tiles(rows: usize, columns: usize) -> usize {
    rows * columns
}

/// Returns the lowest eight bits of a number, all others cleared.
fn low_byte(bits: u32) -> u32 {
    bits & 0xff
}

/// Returns a number with its lowest bit set.
fn with_lowest_bit(bits: u16) -> u16 {
    bits | 1
}

/// Returns a number with the bits of the mask flipped.
fn toggled(bits: u8, mask: u8) -> u8 {
    bits ^ mask
}

/// Returns a number with each of its bits flipped.
fn all_flipped(bits: u8) -> u8 {
    !bits
}

/// Returns the bits moved by four places towards the high end.
fn moved_up(bits: u32) -> u32 {
    bits << 4
}

/// Returns the bits moved by so many places towards the low end.
// inputs: places in 0..=15
fn moved_down(bits: u16, places: u32) -> u16 {
    bits >> places
}

/// Returns how many bits of a number are set.
fn bits_set(bits: u64) -> u32 {
    bits.count_ones()
}

/// Tells whether water freezes at a temperature in degrees Celsius: at zero and below.
// edges: 0.0; 0.5; -0.5
fn is_freezing(celsius: f64) -> bool {
    celsius <= 0.0
}

/// Tells whether a test with so many points is passed, for which it takes fifty.
// inputs: points in 0..=100
// edges: 49; 50
fn is_passed(points: u8) -> bool {
    points >= 50
}

/// Tells whether two letters are the same.
// family: equal
// edges: ('a', 'a'); ('a', 'A')
fn same_letter(a: char, b: char) -> bool {
    a == b
}

/// Tells whether two words are spelled differently.
// family: differ
fn spelled_differently(one: &str, other: &str) -> bool {
    one != other
}

/// Tells whether the first word stands before the second one in byte order.
// edges: ("bear", "bears"); ("ox", "cat"); ("ant", "ant")
fn stands_before(first: &str, second: &str) -> bool {
    first < second
}

/// Returns the size of a text in bytes.
fn byte_length(text: &str) -> usize {
    text.len()
}

/// Tells whether a text has no characters at all.
fn is_blank(text: &str) -> bool {
    text.is_empty()
}

/// Returns a text in capital letters.
fn shout(text: &str) -> String {
    text.to_uppercase()
}

/// Returns a text in small letters.
fn whisper(text: &str) -> String {
    text.to_lowercase()
}

/// Returns a text without the white space around it.
fn without_margins(text: &str) -> &str {
    text.trim()
}

/// Tells whether a text starts with a certain beginning.
// edges: ("window", "win"); ("window", "low"); ("", "")
fn opens_with(text: &str, beginning: &str) -> bool {
    text.starts_with(beginning)
}

/// Tells whether a word occurs somewhere in a text.
// edges: ("a red kite", "red"); ("a red kite", "blue")
fn mentions(text: &str, word: &str) -> bool {
    text.contains(word)
}

/// Returns a text written twice, without anything between.
fn echo(text: &str) -> String {
    text.repeat(2)
}

/// Returns the decimal digits of a number as text.
fn in_digits(number: i64) -> String {
    number.to_string()
}

/// Returns how many items are on a shelf.
// family: length
fn num_items(shelf: &[u16]) -> usize {
    shelf.len()
}

/// Tells whether nobody stands in a queue.
fn nobody_waits(queue: &[String]) -> bool {
    queue.is_empty()
}

/// Returns a number as a value that is present.
fn present(number: i32) -> Option<i32> {
    Some(number)
}

/// Tells whether a measurement is missing.
fn is_missing(measured: Option<f64>) -> bool {
    measured.is_none()
}

/// Returns a success that carries a number.
fn succeed(number: u8) -> Result<u8, String> {
    Ok(number)
}

/// Returns a name and an age together.
fn person(name: String, age: u8) -> (String, u8) {
    (name, age)
}

/// Returns the two parts of a pair in the other order.
fn swapped(pair: (i32, bool)) -> (bool, i32) {
    (pair.1, pair.0)
}

/// Returns the height of a box that is given as width, height and depth.
fn height_of(sizes: (u32, u32, u32)) -> u32 {
    sizes.1
}

/// Returns the area of a field of a certain width and length.
// family: times
fn field_area(width: f64, length: f64) -> f64 {
    width * length
}

/// Returns the price for each of two people who share a bill.
// family: half
fn shared_bill(bill: f64) -> f64 {
    bill / 2.0
}

/// Returns the largest whole number that is not above `x`.
fn rounded_down(x: f64) -> f64 {
    x.floor()
}

/// Returns a whole number as one with a fraction.
fn as_fraction(whole: i32) -> f64 {
    whole as f64
}

/// Returns the number of a character in the list of all characters.
fn code_of(letter: char) -> u32 {
    letter as u32
}

/// Returns the capital form of an ASCII letter; other characters stay as they are.
fn capital(letter: char) -> char {
    letter.to_ascii_uppercase()
}

/// Tells whether a character is one of the decimal digits 0 to 9.
fn is_decimal_digit(symbol: char) -> bool {
    symbol.is_ascii_digit()
}

/// Returns a list that holds one number only.
fn just_one(number: i16) -> Vec<i16> {
    vec![number]
}
