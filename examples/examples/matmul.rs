//! Multiplies two square matrices in blocks on a cluster, and compares the product with that of three plain
//! loops.
//!
//! ```text
//! cargo run --release -p towline-examples --example matmul -- --size 2048 --block 256
//! cargo run --release -p towline-examples --example matmul -- --scheduler ADDRESS --work    # once or more often; then:
//! cargo run --release -p towline-examples --example matmul -- --scheduler ADDRESS
//! ```
//!
//! Each block of A and B is made where it is first needed, and is sent from there to the tasks of its row or
//! column. Elements are small integers: their products and sums are exact in any order, so both results must
//! be equal to the last bit.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use towline_examples::{ClusterOptions, Outcome, all_done, run};
use towline_runtime::{Data, Function, Registry, TaskResult};

/// A or B, the block's row and column among the blocks, and its size.
const BLOCK: Function<(char, usize, usize, usize), Data> = Function::new("block");
/// A row of A's blocks, a column of B's, and the size of each.
const MULTIPLY: Function<(Vec<Data>, Vec<Data>, usize), Data> = Function::new("multiply");

/// Multiplies two square matrices in blocks.
#[derive(Debug, Parser)]
#[command(name = "matmul")]
struct Arguments {
    #[command(flatten)]
    cluster: ClusterOptions,
    /// Rows and columns of the matrices: a multiple of the block's.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    size: u32,
    /// Rows and columns of a block.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=4096))]
    block: u32,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    run("matmul", multiply_matrices(arguments))
}

async fn multiply_matrices(arguments: Arguments) -> Outcome {
    let (size, block) = (arguments.size as usize, arguments.block as usize);
    if !size.is_multiple_of(block) {
        return Err(format!("--size {size} is no multiple of --block {block}").into());
    }
    let registry = Registry::new().with(BLOCK, make_block).with(MULTIPLY, multiply);
    let Some(cluster) = arguments.cluster.join(registry).await? else { return Ok(()) };
    let client = cluster.client();
    let begun = Instant::now();

    let blocks = 0..size / block;
    let row_of_a = |row| client.map(BLOCK, blocks.clone().map(move |at| ('A', row, at, block)));
    let column_of_b = |column| client.map(BLOCK, blocks.clone().map(move |at| ('B', at, column, block)));
    let rows = blocks.clone().map(row_of_a).collect::<Result<Vec<_>, _>>()?;
    let columns = blocks.clone().map(column_of_b).collect::<Result<Vec<_>, _>>()?;
    let pairs = rows.iter().flat_map(|row| columns.iter().map(move |column| (row, column, block)));
    let product = client.map(MULTIPLY, pairs)?;
    drop((rows, columns));
    all_done("blocks multiplied", &product).await?;
    let product = client.gather(&product).await?;
    let took = begun.elapsed();

    let begun = Instant::now();
    let expected = plainly(size);
    let alone = begun.elapsed();
    let mut sum = 0.0;
    for (at, bytes) in product.iter().enumerate() {
        let (top, left) = (at / blocks.len() * block, at % blocks.len() * block);
        for (row, numbers) in numbers(bytes).chunks_exact(block).enumerate() {
            let begin = (top + row) * size + left;
            if numbers != &expected[begin..begin + block] {
                return Err(format!("row {} differs from that of three plain loops", top + row).into());
            }
            sum += numbers.iter().sum::<f64>();
        }
    }
    println!(
        "{size} x {size} in blocks of {block}, in {took:.2?}; three plain loops: {alone:.2?}; sum of the elements: {sum}"
    );
    Ok(())
}

/// An element of A or B: from -8 to 8, the same at every worker.
fn element(matrix: char, row: usize, column: usize) -> f64 {
    let seed = (matrix as u64) << 40 | (row as u64) << 20 | column as u64;
    let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((mixed >> 40) % 17) as f64 - 8.0
}

// ---- What workers run ----

fn make_block(matrix: char, row: usize, column: usize, size: usize) -> TaskResult<Data> {
    let at = |at: usize| element(matrix, row * size + at / size, column * size + at % size);
    Ok((0..size * size).flat_map(|number| at(number).to_le_bytes()).collect::<Vec<u8>>().into())
}

fn multiply(row: Vec<Data>, column: Vec<Data>, size: usize) -> TaskResult<Data> {
    let mut product = vec![0.0; size * size];
    for (a, b) in row.iter().zip(&column) {
        add_product(&mut product, &numbers(a), &numbers(b), size);
    }
    Ok(product.into_iter().flat_map(f64::to_le_bytes).collect::<Vec<u8>>().into())
}

/// Adds the product of two square matrices.
fn add_product(product: &mut [f64], a: &[f64], b: &[f64], size: usize) {
    for (sums, row) in product.chunks_exact_mut(size).zip(a.chunks_exact(size)) {
        for (factor, row) in row.iter().zip(b.chunks_exact(size)) {
            for (sum, number) in sums.iter_mut().zip(row) {
                *sum += factor * number;
            }
        }
    }
}

fn numbers(bytes: &Data) -> Vec<f64> {
    let (numbers, _) = bytes.as_slice().unwrap_or_default().as_chunks();
    numbers.iter().copied().map(f64::from_le_bytes).collect()
}

/// Computes the product on one thread, without blocks.
fn plainly(size: usize) -> Vec<f64> {
    let matrix = |name| (0..size * size).map(|at| element(name, at / size, at % size)).collect::<Vec<_>>();
    let mut product = vec![0.0; size * size];
    add_product(&mut product, &matrix('A'), &matrix('B'), size);
    product
}
