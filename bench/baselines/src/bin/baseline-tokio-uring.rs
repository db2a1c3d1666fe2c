//! tokio-uring with its default ring (it hangs with DEFER_TASKRUN): a task and a read buffer for each
//! connection, real file descriptors, one receive and one send request for each read.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio_uring::net::{TcpListener, TcpStream};
use trunkline_baselines::{Args, Counter, MESSAGES_PER_WRITE, READ_BYTES, Shape};

/// All connections; none where one is gone.
type Everybody = Rc<RefCell<Vec<Option<Rc<TcpStream>>>>>;

fn main() -> io::Result<()> {
    let args = Args::read();
    let mut builder = tokio_uring::builder();
    builder
        .entries(4_096)
        .uring_builder(tokio_uring::uring_builder().setup_cqsize(32_768));
    builder.start(async move {
        let listener = TcpListener::from_std(args.listen()?);
        let everybody = Everybody::default();
        let block: &'static [u8] = args.block().leak();
        loop {
            let (stream, _) = listener.accept().await?;
            match args.shape {
                Shape::Echo => drop(tokio_uring::spawn(echo(stream))),
                Shape::Fanout => {
                    let everybody = Rc::clone(&everybody);
                    drop(tokio_uring::spawn(publish(
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
async fn echo(stream: TcpStream) {
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
    let stream = Rc::new(stream);
    let place = {
        let mut all = everybody.borrow_mut();
        all.push(Some(Rc::clone(&stream)));
        all.len() - 1
    };
    let mut buffer = Vec::with_capacity(READ_BYTES);
    let mut counter = Counter::default();
    loop {
        let (result, filled) = stream.read(buffer).await;
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
    let streams: Vec<_> = everybody.borrow().iter().flatten().cloned().collect();
    let mut writes: FuturesUnordered<_> = streams
        .into_iter()
        .map(|stream| async move { stream.write_all(bytes).await.0 })
        .collect();
    while let Some(result) = writes.next().await {
        if let Err(error) = result {
            eprintln!("a fan-out write of {} bytes: {error}", bytes.len());
        }
    }
}
