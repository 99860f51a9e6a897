//! Routes: which CPU takes a device's interrupt, at which vector, and by which handler.
//!
//! The BSP reads once where interrupts arrive, maps the I/O APICs for good, and masks all their inputs, before
//! any AP is released. What changes after that is each I/O APIC's registers, behind a lock of its own.
//!
//! A route is made from the CPU to the device, and removed from the device to the CPU: the vector has its handler
//! before the input is unmasked, and keeps it until the input is masked and what it had sent is taken.

use alloc::vec::Vec;
use core::fmt;

use conquer_once::spin::OnceCell;
use muster_frames::{PhysAddr, PhysRange};
use muster_machine::acpi::IoApic;
use muster_machine::io_apic::{
    Controller, Destination, DestinationWidth, Entry, IoApicError, Mmio, Signal,
};
use muster_machine::routing::{Route, Routing, RoutingError};
use muster_paging::{Access, Cache};

use crate::boot::limine::Boot;
use crate::boot::owner::Owner;
use crate::mm::mapping::{Mapping, MappingError};
use crate::mm::{firmware, shared};
use crate::smp::device_vectors::{DeviceVector, Handler, VectorError};
use crate::smp::lock::{Level, Lock};
use crate::smp::{cpu, lapic, online};

/// Where interrupts arrive, and the I/O APICs.
struct Routes {
    routing: Result<Routing, RoutingError>,
    /// By their indices in the routing; `None` for one that can't be used.
    io_apics: Vec<Option<Lock<Inputs>>>,
}

static ROUTES: OnceCell<Routes> = OnceCell::uninit();

/// An I/O APIC.
struct Inputs {
    controller: Controller<Registers>,
    /// The inputs that have a route, a bit for each.
    routed: u128,
}

/// The bytes of an I/O APIC's registers: two words 16 bytes apart (Intel 82093AA, 3.1), all in one page.
const REGISTERS_LENGTH: u64 = 0x14;

/// The registers of an I/O APIC.
struct Registers(Mapping);

impl Registers {
    fn at(&mut self, offset: u32) -> *mut u32 {
        // The address is a multiple of 0x100, as `Routing` checks, and so a register of 32 bits is aligned.
        self.0.start().wrapping_add(offset as usize).cast()
    }
}

impl Mmio for Registers {
    fn read(&mut self, offset: u32) -> u32 {
        // SAFETY: the register lies in the page that is mapped as long as this lives, uncached, and is aligned.
        // No one else uses it: there is one of these for each I/O APIC, behind its lock.
        unsafe { self.at(offset).read_volatile() }
    }

    fn write(&mut self, offset: u32, value: u32) {
        // SAFETY: as for `read`. What is written makes an I/O APIC send interrupts, of vectors that have
        // handlers on every CPU.
        unsafe { self.at(offset).write_volatile(value) };
    }
}

/// Why an I/O APIC can't be used.
enum Unusable {
    /// Its address is that of memory.
    Memory(Owner),
    /// Its address is no physical address.
    Address,
    Mapping(MappingError),
    Registers(IoApicError),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(owner) => write!(
                f,
                "the loader has memory there ({owner}): update the firmware"
            ),
            Self::Address => write!(f, "no such address can be mapped: update the firmware"),
            Self::Mapping(error) => error.fmt(f),
            Self::Registers(error) => error.fmt(f),
        }
    }
}

/// Reads where interrupts arrive, and masks the inputs of all I/O APICs. Called once on the BSP, before any AP
/// is released. What can't be used is logged, and costs the interrupts that arrive there.
pub fn start(boot: &Boot) {
    let mut io_apics = Vec::new();
    let routing = firmware::routing(boot, |io_apic| {
        let inputs = Inputs::open(io_apic);
        let pins = match &inputs {
            Ok(inputs) => inputs.controller.pins(),
            Err(error) => {
                let (id, address) = (io_apic.id, io_apic.address);
                log::warn!(target: "irq", "I/O APIC {id} at {address:#x} can't be used: {error}");
                0
            }
        };
        io_apics.push(inputs.ok().map(|inputs| Lock::new(Level::IoApic, inputs)));
        pins
    });
    match &routing {
        Ok(routing) => {
            for (io_apic, pins) in routing.io_apics() {
                let (id, first) = (io_apic.id, io_apic.first_gsi);
                log::debug!(target: "irq", "I/O APIC {id}: {pins} inputs, from GSI {first} on");
            }
        }
        Err(error) => log::debug!(target: "irq", "no device's interrupt can be routed: {error}"),
    }
    ROUTES.init_once(|| Routes { routing, io_apics });
}

impl Inputs {
    /// Maps an I/O APIC's registers, and masks its inputs.
    fn open(io_apic: IoApic) -> Result<Self, Unusable> {
        let start = PhysAddr::new(io_apic.address.into());
        if let Some(owner) = shared::get().map().owner_of(start)
            && owner != Owner::Reserved
        {
            return Err(Unusable::Memory(owner));
        }
        let registers = PhysRange::new(start, REGISTERS_LENGTH).ok_or(Unusable::Address)?;
        // SAFETY: the firmware says that an I/O APIC is there, and the loader that no memory is; uncached, it
        // is read and written only by `Registers`.
        let mapping = unsafe { Mapping::physical(registers, Access::ReadWrite, Cache::Uncached) }
            .map_err(Unusable::Mapping)?;
        let mut controller = Controller::new(Registers(mapping)).map_err(Unusable::Registers)?;
        controller.mask_all();
        Ok(Self {
            controller,
            routed: 0,
        })
    }
}

/// Why an interrupt has no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteError {
    /// It arrives nowhere, or nobody knows where.
    Routing(RoutingError),
    /// Its I/O APIC can't send it to this CPU.
    IoApic(IoApicError),
    /// The CPU with this index is not online.
    NotOnline(u32),
    /// The CPUs have no local APICs.
    NoLocalApic,
    /// The interrupt that arrives at this GSI has a route.
    Routed(u32),
    /// There is no vector for it.
    Vector(VectorError),
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Routing(error) => error.fmt(f),
            Self::IoApic(error) => error.fmt(f),
            Self::NotOnline(cpu) => write!(
                f,
                "no interrupt can be routed to CPU {cpu}: use the index of a CPU that is online"
            ),
            Self::NoLocalApic => write!(
                f,
                "no interrupt can be routed: the CPUs have no local APICs, or they are switched off"
            ),
            Self::Routed(gsi) => {
                write!(
                    f,
                    "GSI {gsi} has a route: remove it first, or use another GSI"
                )
            }
            Self::Vector(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for RouteError {}

/// Returns the published state: the kernel calls no one before it.
fn routes() -> Result<&'static Routes, RouteError> {
    ROUTES.get().ok_or(RouteError::NoLocalApic)
}

fn routing() -> Result<&'static Routing, RouteError> {
    let routing = routes()?.routing.as_ref();
    routing.map_err(|&error| RouteError::Routing(error))
}

/// Routes ISA's interrupt `irq` to a CPU.
///
/// # Errors
///
/// [`RouteError`]; nothing is routed then.
///
/// # Panics
///
/// As [`call::run`](crate::smp::call::run).
pub fn isa(irq: u8, cpu: u32, handler: Handler) -> Result<Interrupt, RouteError> {
    let route = routing()?.isa(irq).map_err(RouteError::Routing)?;
    Interrupt::route(route, cpu, handler)
}

/// Routes the interrupt that arrives at a GSI to a CPU.
///
/// # Errors
///
/// As [`isa`].
///
/// # Panics
///
/// As [`isa`].
pub fn gsi(gsi: u32, signal: Signal, cpu: u32, handler: Handler) -> Result<Interrupt, RouteError> {
    let route = routing()?.gsi(gsi, signal).map_err(RouteError::Routing)?;
    Interrupt::route(route, cpu, handler)
}

/// Returns the bit of an input in a set of them.
fn bit(pin: u8) -> u128 {
    1_u128.checked_shl(pin.into()).unwrap_or(0)
}

/// An input that is one route's. It is masked and free when this is dropped.
struct Input {
    io_apic: &'static Lock<Inputs>,
    pin: u8,
}

impl Input {
    fn claim(route: &Route) -> Result<Self, RouteError> {
        let (gsi, pin) = (route.gsi, route.pin);
        let io_apic = routes()?
            .io_apics
            .get(route.io_apic)
            .and_then(Option::as_ref);
        let io_apic = io_apic.ok_or(RouteError::Routing(RoutingError::NoIoApic(gsi)))?;
        let mut inputs = io_apic.lock();
        if inputs.routed & bit(pin) != 0 {
            return Err(RouteError::Routed(gsi));
        }
        // Before it counts as routed: it is there.
        inputs.controller.mask(pin).map_err(RouteError::IoApic)?;
        inputs.routed |= bit(pin);
        Ok(Self { io_apic, pin })
    }

    fn set(&self, entry: Entry) -> Result<(), RouteError> {
        let mut inputs = self.io_apic.lock();
        inputs
            .controller
            .set(self.pin, entry)
            .map_err(RouteError::IoApic)
    }

    fn mask(&self) {
        // The input is there: `claim` has masked it.
        let _ = self.io_apic.lock().controller.mask(self.pin);
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.mask();
        self.io_apic.lock().routed &= !bit(self.pin);
    }
}

/// A device's interrupt that has a route. It has none any more when this is dropped.
#[must_use = "the route is removed when this is dropped"]
pub struct Interrupt {
    input: Input,
    gsi: u32,
    /// Until the route is removed.
    vector: Option<DeviceVector>,
}

impl Interrupt {
    fn route(route: Route, cpu: u32, handler: Handler) -> Result<Self, RouteError> {
        let (_, block) = online::cpus()
            .find(|&(index, _)| index == cpu)
            .ok_or(RouteError::NotOnline(cpu))?;
        if lapic::registered_id().is_none() {
            return Err(RouteError::NoLocalApic);
        }
        let to = Destination::new(cpu::lapic_id(block), DestinationWidth::Bits8)
            .map_err(RouteError::IoApic)?;
        let interrupt = Self {
            input: Input::claim(&route)?,
            gsi: route.gsi,
            vector: Some(DeviceVector::register(cpu, handler).map_err(RouteError::Vector)?),
        };
        let entry = route.entry(interrupt.vector(), to);
        interrupt.input.set(entry.map_err(RouteError::IoApic)?)?;
        Ok(interrupt)
    }

    /// Returns the GSI at which it arrives.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }

    /// Returns the vector at which its CPU takes it.
    pub fn vector(&self) -> u8 {
        self.vector.as_ref().map_or(0, DeviceVector::vector)
    }

    /// Returns the index of the CPU that takes it.
    pub fn cpu(&self) -> u32 {
        self.vector.as_ref().map_or(0, DeviceVector::cpu)
    }

    /// Removes the route. When it returns, the handler does not run, and never will for this route.
    ///
    /// # Errors
    ///
    /// [`VectorError`]: the input is masked, and the vector and its handler stay as they are, for good.
    ///
    /// # Panics
    ///
    /// As [`call::run`](crate::smp::call::run).
    pub fn unroute(mut self) -> Result<(), VectorError> {
        self.remove()
    }

    fn remove(&mut self) -> Result<(), VectorError> {
        let Some(vector) = self.vector.take() else {
            return Ok(());
        };
        self.input.mask();
        vector.remove()
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupt")
            .field("gsi", &self.gsi)
            .field("vector", &self.vector)
            .finish_non_exhaustive()
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            log::error!(target: "irq", "the route of GSI {} is not removed: {error}", self.gsi);
        }
    }
}
