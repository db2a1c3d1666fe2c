//! monoio on its io_uring driver, a task and a read buffer for each connection, real file descriptors,
//! one receive and one send request for each read. Its ring defers task work, which is not its default
//! and made it a tenth cheaper at 10,000 connections.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use monoio::io::{AsyncReadRent as _, AsyncWriteRentExt as _, OwnedWriteHalf, Splitable as _};
use monoio::net::{TcpListener, TcpStream};
use trunkline_baselines::{Args, Counter, MESSAGES_PER_WRITE, READ_BYTES, Shape};

/// The writing halves of all connections; none where one is gone, or while it writes.
type Everybody = Rc<RefCell<Vec<Option<OwnedWriteHalf<TcpStream>>>>>;

fn main() -> io::Result<()> {
    let args = Args::read();
    let mut ring = io_uring::IoUring::builder();
    ring.setup_single_issuer().setup_defer_taskrun();
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .with_entries(4_096)
        .uring_builder(ring)
        .build()?;
    runtime.block_on(async move {
        let listener = TcpListener::from_std(args.listen()?)?;
        let everybody = Everybody::default();
        let block: &'static [u8] = args.block().leak();
        loop {
            let (stream, _) = listener.accept().await?;
            match args.shape {
                Shape::Echo => drop(monoio::spawn(echo(stream))),
                Shape::Fanout => {
                    let everybody = Rc::clone(&everybody);
                    drop(monoio::spawn(publish(
                        stream,
                        everybody,
                        block,
                        args.payload,
                    )));
                }
            }
        }
    })
}

/// Ends with the connection.
async fn echo(mut stream: TcpStream) {
    let mut buffer = Vec::with_capacity(READ_BYTES);
    loop {
        let (result, filled) = stream.read(buffer).await;
        if !matches!(result, Ok(1..)) {
            return;
        }
        let (result, written) = stream.write_all(filled).await;
        if result.is_err() {
            return;
        }
        buffer = written;
        buffer.clear();
    }
}

async fn publish(stream: TcpStream, everybody: Everybody, block: &'static [u8], payload: usize) {
    let (mut read, write) = stream.into_split();
    let place = {
        let mut all = everybody.borrow_mut();
        all.push(Some(write));
        all.len() - 1
    };
    let mut buffer = Vec::with_capacity(READ_BYTES);
    let mut counter = Counter::default();
    loop {
        let (result, filled) = read.read(buffer).await;
        let Ok(length @ 1..) = result else {
            break;
        };
        buffer = filled;
        buffer.clear();
        let mut messages = counter.messages(length, payload);
        while messages > 0 {
            let now = messages.min(MESSAGES_PER_WRITE);
            messages -= now;
            send_to_all(&everybody, &block[..now * payload]).await;
        }
    }
    everybody.borrow_mut()[place] = None;
}

/// All writes under way at once: they reach the kernel together.
async fn send_to_all(everybody: &Everybody, bytes: &'static [u8]) {
    let mut writes = FuturesUnordered::new();
    for (place, write) in everybody.borrow_mut().iter_mut().enumerate() {
        if let Some(mut half) = write.take() {
            writes.push(async move {
                let (result, _) = half.write_all(bytes).await;
                (place, result.is_ok().then_some(half))
            });
        }
    }
    while let Some((place, half)) = writes.next().await {
        everybody.borrow_mut()[place] = half;
    }
}
